// SPDX-License-Identifier: GPL-2.0-or-later
//
// Writes the seed corpus: for each target small inputs that get everywhere once, in the layouts that the targets' comments
// describe. usage: seeds DIRECTORY
#include "core/core.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

std::filesystem::path root;

struct Seed {
	std::string bytes;

	template <typename... T> Seed &add(T... values)
	{
		(bytes.push_back(static_cast<char>(values)), ...);
		return *this;
	}
	Seed &raw(const void *p, size_t n)
	{
		bytes.append(static_cast<const char *>(p), n);
		return *this;
	}
	void write(const std::string &target, const std::string &name) const
	{
		std::filesystem::create_directories(root / target);
		std::ofstream out(root / target / name, std::ios::binary);
		out << bytes;
		if (!out.flush()) {
			fprintf(stderr, "seeds: cannot write %s\n", (root / target / name).c_str());
			exit(1);
		}
	}
};

lks_frame typical(uint8_t type)
{
	lks_frame f{};
	f.type = type;
	f.seq = 1;
	switch (type) {
	case LKS_ACTIVATE:
	case LKS_CONFIG:
	case LKS_SYNCSTART:
		f.length = sizeof(lks_record);
		break;
	case LKS_MAP:
		f.length = LKS_MAP_CHUNK_BYTES;
		f.tag = LKS_MAP_EVIDENCE;
		break;
	case LKS_REPL:
	case LKS_SYNC:
		f.length = f.tag = 4096;
		break;
	case LKS_REQ:
		f.flags = LKS_OP_WRITE << LKS_F_OP_SHIFT;
		f.length = f.tag = 4096;
		f.stable = 2;
		break;
	case LKS_STABLE:
		f.stable = 1;
		break;
	case LKS_ATTACH:
		f.session = 78;
		break;
	}
	f.offset = type == LKS_MAP ? 0 : 8192;
	return f;
}

// Steps and fixes as in frames.cc
enum { FRAME, COMPLETE, TICK, LINK, SUBMIT, CONFIG, DOOR, DETACH };
enum { SEAL = 1, VOLUME = 2, TERM = 4, VERSION = 8, SESSION = 16, RECORD = 32, IN_RANGE = 64, LAST_SEQ = 128 };
constexpr uint8_t RIGHT = SEAL | VOLUME | TERM | VERSION | SESSION;

void add_frame(Seed &s, uint8_t type, uint8_t host, uint8_t fix)
{
	lks_frame f = typical(type);
	bool record = f.length == sizeof(lks_record);
	s.add(FRAME, host, fix | (record ? RECORD : 0)).raw(&f, sizeof(f));
	if (record)
		s.add(1, 0, 0);    // the next version, no patch
	else if (f.length)
		s.bytes.append(16, '\x11');
}

void frames()
{
	for (uint8_t state = 0; state < 8; state++) {
		std::string name = "state" + std::to_string(state);
		for (uint8_t type = LKS_ACTIVATE; type < LKS_FRAME_TYPES; type++) {
			Seed s;
			s.add(state, 1, 0);
			for (uint8_t host : {0, 2, 3}) {
				add_frame(s, type, host, RIGHT | (type == LKS_ACK || type == LKS_SYNCED || type == LKS_FLUSHED ? LAST_SEQ : 0));
				s.add(COMPLETE, 0, 0, TICK, 20);
			}
			s.write("frames", name + "-type" + std::to_string(type));
			Seed ranged;
			ranged.add(state, 1, 0);
			for (uint8_t host : {0, 1})
				add_frame(ranged, type, host, RIGHT | IN_RANGE);
			ranged.add(COMPLETE, 0, 0);
			ranged.write("frames", name + "-range" + std::to_string(type));
		}
		Seed work;
		work.add(state, 5, 0);
		work.add(DOOR, 0, TICK, 20);
		for (uint8_t op = 0; op < 5; op++)
			work.add(SUBMIT, op, op & 1).raw("\x10\x00\x00\x00", 4).add(7);
		for (int i = 0; i < 8; i++)
			work.add(COMPLETE, 0, 0);
		for (uint8_t host : {0, 1})
			for (int i = 0; i < 4; i++)
				add_frame(work, LKS_ACK, host, RIGHT | LAST_SEQ);
		work.add(TICK, 200, LINK, 0, TICK, 200, CONFIG, 2, 1, 0, 0, DETACH, TICK, 100);
		work.write("frames", name + "-requests");
		work.bytes[2] = 3;
		work.write("frames", name + "-allocations");
		work.bytes[1] = 8 | 2;
		work.bytes[2] = 0;
		work.write("frames", name + "-thick");
	}
	// a record of a size that the replica here never got, which goes and would come back
	const size_t at = offsetof(lks_record, size) + 5;
	Seed outgrown;
	outgrown.add(0, 1, 0, CONFIG, 1, 0, 1, at & 0xff, at >> 8, 5, 1, DETACH);
	outgrown.write("frames", "outgrown");
	for (uint8_t state : {0, 1, 2, 6}) {    // requests to another host, and its replies
		Seed client;
		client.add(state, 1, 0, DOOR, 0, TICK, 10);
		add_frame(client, LKS_REPLY, 0, RIGHT | LAST_SEQ);
		for (uint8_t op = 0; op < 5; op++) {
			client.add(SUBMIT, op, 0).raw("\x10\x00\x00\x00", 4).add(7);
			for (unsigned sectors : {7u, 9u, 8u, 0u}) {    // too short, too long, right
				lks_frame reply = typical(LKS_REPLY);
				reply.seq = 0;
				reply.length = op ? 0 : sectors * LKS_SECTOR;
				client.add(FRAME, 0, RIGHT | LAST_SEQ).raw(&reply, sizeof(reply));
				client.bytes.append(reply.length ? 16 : 0, '\x22');
				if (op == 0 && sectors < 10 && sectors != 8)    // the link was closed
					client.add(LINK, 0, TICK, 10);
			}
		}
		add_frame(client, LKS_REFUSED, 0, RIGHT | LAST_SEQ);
		client.add(TICK, 100, LINK, 0, LINK, 0, TICK, 100, DOOR, 1, DOOR, 2);
		client.write("frames", "state" + std::to_string(state) + "-replies");
	}
	Seed joining;
	joining.add(5, 1, 0);
	for (int i = 0; i < 10; i++) {
		add_frame(joining, LKS_SYNCED, 0, RIGHT | LAST_SEQ);
		joining.add(TICK, 10);
	}
	add_frame(joining, LKS_PREPARED, 0, RIGHT);
	joining.add(TICK, 10);
	joining.write("frames", "joining");
}

void attach()
{
	for (uint8_t shape = 0; shape < 16; shape++)
		for (uint8_t flags : {0, 1, 3, 5, 7, 9}) {
			Seed s;
			s.add(shape, flags);
			if (flags & 1) {
				// slot 0 and 3 of superblock A: h2 and h4; extents 0..7 of all kinds; a few bits of the maps
				s.add(0, offsetof(lks_superblock, slots), 0, 0, 2);
				s.add(0, offsetof(lks_superblock, slots) + 3 * sizeof(lks_disk_slot), 0, 0, 4);
				s.add(2, offsetof(lks_extent_record, bits), 0, 1, 0x1b, 0xe4);
				s.add(3, 0, 0, 3, 0xff, 0x0f, 0xaa, 0x01);
			}
			s.write("attach", "shape" + std::to_string(shape) + "-flags" + std::to_string(flags));
		}
}

void headers()
{
	for (uint8_t type = 0; type <= LKS_FRAME_TYPES; type++) {
		lks_frame f = typical(type);
		lks_frame_seal(&f);
		for (uint8_t flags : {0, 1, 2, 6, 10, 14}) {
			Seed s;
			s.add(flags).raw(&f, sizeof(f));
			s.write("headers", "type" + std::to_string(type) + "-" + std::to_string(flags));
		}
	}
	lks_record r{};
	r.version = 3;
	r.term = r.vid = r.primary = r.nreplicas = r.nopeners = 1;
	r.session_serial = 4;
	r.replicas[0].host = 1;
	r.replicas[0].state = LKS_REPLICA_INSYNC;
	r.openers[0].host = 64;
	r.openers[0].session = 4;
	lks_frame none{};
	Seed().add(0).raw(&none, sizeof(none)).raw(&r, sizeof(r)).write("headers", "record");
}

}    // namespace

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: seeds DIRECTORY\n");
		return 2;
	}
	root = argv[1];
	frames();
	attach();
	headers();
	return 0;
}
