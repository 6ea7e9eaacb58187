// SPDX-License-Identifier: GPL-2.0-or-later
//
// The wire format: what lks_frame_check() lets through, and lks_record_check().
#include "core/wire.h"
#include "core/core.h"

#include <catch2/catch_test_macros.hpp>

#include <cstring>
#include <functional>
#include <random>

namespace {

lks_frame frame(uint8_t type, uint32_t length = 0, uint8_t flags = 0)
{
	lks_frame f{};
	f.type = type;
	f.flags = flags;
	f.length = length;
	f.volume = 1;
	f.version = f.term = 1;
	lks_frame_seal(&f);
	return f;
}

bool accepted(const lks_frame &f) { return lks_frame_check(&f) == 0; }

lks_record record()
{
	lks_record r{};
	r.size = 1 << 20;
	r.vid = 1;
	r.version = 9;
	r.term = 2;
	r.session_serial = 5;
	r.nreplicas = 2;
	r.replicas[0] = {.host = 1, .state = LKS_REPLICA_INSYNC, .pad = {}, .since = 1, .added = 1};
	r.replicas[1] = {.host = 64, .state = LKS_REPLICA_STALE, .pad = {}, .since = 9, .added = 1};
	r.primary = 1;
	r.nopeners = 2;
	r.openers[0] = {.host = 2, .pad = {}, .session = 4};
	r.openers[1] = {.host = 3, .pad = {}, .session = 5};
	return r;
}

bool valid(const std::function<void(lks_record &)> &change)
{
	lks_record r = record();
	change(r);
	int err = lks_record_check(&r);
	CHECK((err == 0 || err == -EINVAL));
	return err == 0;
}

}    // namespace

TEST_CASE("crc32c is the one of iSCSI")
{
	CHECK(lks_crc32c(0, "123456789", 9) == 0xe3069283);
	uint8_t zeros[32] = {}, ones[32];
	memset(ones, 0xff, sizeof(ones));
	CHECK(lks_crc32c(0, zeros, 32) == 0x8a9136aa);
	CHECK(lks_crc32c(0, ones, 32) == 0x62a8ab43);
	CHECK(lks_crc32c(lks_crc32c(0, "1234", 4), "56789", 5) == 0xe3069283);
	CHECK(lks_crc32c(0, "", 0) == 0);
}

TEST_CASE("a sealed frame passes, and no single bit of it may change")
{
	for (uint8_t type = LKS_ACTIVATE; type < LKS_FRAME_TYPES; type++) {
		uint32_t length = type == LKS_ACTIVATE || type == LKS_CONFIG || type == LKS_SYNCSTART ? sizeof(lks_record)
				: type == LKS_REPL ? 4096 : 0;
		lks_frame f = frame(type, length, type == LKS_REQ ? LKS_OP_READ << LKS_F_OP_SHIFT : 0);
		INFO("type " << int(type));
		REQUIRE(accepted(f));
		for (size_t bit = 0; bit < sizeof(f) * 8; bit++) {
			lks_frame g = f;
			reinterpret_cast<uint8_t *>(&g)[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
			CHECK_FALSE(accepted(g));
		}
	}
}

TEST_CASE("random garbage is refused, sealed or not")
{
	std::mt19937_64 random(1);
	unsigned passed = 0;
	for (unsigned n = 0; n < 200000; n++) {
		lks_frame f;
		uint64_t words[sizeof(f) / 8];
		for (uint64_t &word : words)
			word = random();
		memcpy(&f, words, sizeof(f));
		CHECK_FALSE(accepted(f));
		f.type %= LKS_FRAME_TYPES + 2;
		lks_frame_seal(&f);
		if (!accepted(f))
			continue;
		// What passes can be received: its payload is bounded and of whole sectors where it goes into a buffer.
		passed++;
		CHECK(f.type >= LKS_ACTIVATE);
		CHECK(f.type < LKS_FRAME_TYPES);
		if (lks_frame_has_data(&f)) {
			CHECK(f.length <= LKS_WIRE_DATA_MAX);
			CHECK(f.length % LKS_SECTOR == 0);
		} else {
			CHECK(f.length <= LKS_WIRE_BYTES_MAX);
		}
	}
	CHECK(passed < 100);    // of random lengths, next to none fits
}

TEST_CASE("lengths fit the type")
{
	CHECK(accepted(frame(LKS_REPL, LKS_WIRE_DATA_MAX)));
	CHECK_FALSE(accepted(frame(LKS_REPL, LKS_WIRE_DATA_MAX + 512)));
	CHECK_FALSE(accepted(frame(LKS_REPL, 0)));
	CHECK_FALSE(accepted(frame(LKS_REPL, 513)));
	CHECK(accepted(frame(LKS_REPL, 0, LKS_F_ZEROES)));
	CHECK(accepted(frame(LKS_REPL, 0, LKS_F_DISCARD)));
	CHECK_FALSE(accepted(frame(LKS_REPL, 512, LKS_F_ZEROES)));
	CHECK(accepted(frame(LKS_SYNC, 0)));
	CHECK(accepted(frame(LKS_SYNC, 512)));
	CHECK_FALSE(accepted(frame(LKS_ACK, 512)));
	CHECK_FALSE(accepted(frame(LKS_CONFIG, sizeof(lks_record) - 8)));
	CHECK_FALSE(accepted(frame(LKS_CONFIG, 0)));
	CHECK(accepted(frame(LKS_MAP, LKS_MAP_CHUNK_BYTES)));
	CHECK(accepted(frame(LKS_MAP, 0)));
	CHECK_FALSE(accepted(frame(LKS_MAP, 512)));
	auto req = [](uint8_t op, uint32_t length, uint8_t flags = 0) {
		return accepted(frame(LKS_REQ, length, static_cast<uint8_t>(flags | op << LKS_F_OP_SHIFT)));
	};
	CHECK(req(LKS_OP_WRITE, 512));
	CHECK(req(LKS_OP_WRITE, 512, LKS_F_FUA));
	CHECK_FALSE(req(LKS_OP_WRITE, 0));
	CHECK(req(LKS_OP_READ, 0));
	CHECK_FALSE(req(LKS_OP_READ, 512));
	CHECK(req(LKS_OP_OPEN, 0));
	CHECK_FALSE(req(0, 0));
	CHECK_FALSE(req(LKS_OP_OPEN + 1, 0));
}

TEST_CASE("a record keeps its invariants")
{
	CHECK(valid([](lks_record &) {}));
	CHECK_FALSE(valid([](lks_record &r) { r.version = 0; }));
	CHECK_FALSE(valid([](lks_record &r) { r.nreplicas = LKS_MAX_REPLICAS + 1; }));
	CHECK_FALSE(valid([](lks_record &r) { r.nopeners = LKS_MAX_HOSTS + 1; }));
	CHECK_FALSE(valid([](lks_record &r) { r.nopeners = 255; }));
	CHECK_FALSE(valid([](lks_record &r) { r.replicas[1].host = 1; }));
	CHECK_FALSE(valid([](lks_record &r) { r.replicas[1].host = 0; }));
	CHECK_FALSE(valid([](lks_record &r) { r.replicas[1].host = 65; }));
	CHECK_FALSE(valid([](lks_record &r) { r.replicas[1].state = 0; }));
	CHECK_FALSE(valid([](lks_record &r) { r.replicas[1].state = LKS_REPLICA_FAILED + 1; }));
	CHECK_FALSE(valid([](lks_record &r) { r.replicas[1].since = 10; }));
	CHECK_FALSE(valid([](lks_record &r) { r.primary = 64; }));      // stale
	CHECK_FALSE(valid([](lks_record &r) { r.primary = 2; }));       // no replica
	CHECK_FALSE(valid([](lks_record &r) { r.primary = 200; }));
	CHECK(valid([](lks_record &r) { r.primary = 0; }));
	CHECK(valid([](lks_record &r) { r.replicas[0].state = LKS_REPLICA_SUSPECT; }));
	CHECK_FALSE(valid([](lks_record &r) { r.openers[0].session = 5; }));
	CHECK_FALSE(valid([](lks_record &r) { r.openers[0].session = 0; }));
	CHECK_FALSE(valid([](lks_record &r) { r.openers[0].session = 6; }));
	CHECK_FALSE(valid([](lks_record &r) { r.openers[0].host = 0; }));
	CHECK_FALSE(valid([](lks_record &r) { r.openers[0].host = 65; }));
	CHECK_FALSE(valid([](lks_record &r) { r.flags = 0x80; }));
	CHECK(valid([](lks_record &r) { r.flags = LKS_RECORD_DRAINED; }));
}

TEST_CASE("random records never make the check fall over")
{
	std::mt19937_64 random(2);
	for (unsigned n = 0; n < 100000; n++) {
		lks_record r = record();
		auto *bytes = reinterpret_cast<uint8_t *>(&r);
		for (unsigned k = 1 + random() % 8; k; k--)
			bytes[random() % sizeof(r)] = static_cast<uint8_t>(random());
		int err = lks_record_check(&r);
		REQUIRE((err == 0 || err == -EINVAL));
		if (err == 0) {
			CHECK(r.nreplicas <= LKS_MAX_REPLICAS);
			CHECK(r.primary <= LKS_MAX_HOSTS);
		}
	}
}
