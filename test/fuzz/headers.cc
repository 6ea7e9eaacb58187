// SPDX-License-Identifier: GPL-2.0-or-later
//
// The checks that everything else relies on: of a frame's header and of a record of truth, against naive ones written from
// the comments of wire.h and lockstep.h. Half of the inputs get a right checksum.
//
// Layout: flags, 64 bytes of header, a record.
#include "host.h"

#include <algorithm>
#include <set>

using namespace lockstep::fuzz;

namespace {

bool data_length(uint32_t n) { return n >= 512 && n <= 1048576 && n % 512 == 0; }

bool naive_frame(const lks_frame &f)
{
	if (f.magic != 0x314b534c || f.type < LKS_ACTIVATE || f.type > LKS_READY)
		return false;
	unsigned op = f.flags >> 4;
	switch (f.type) {
	case LKS_ACTIVATE:
	case LKS_CONFIG:
	case LKS_SYNCSTART:
		return f.flags == 0 && f.length == sizeof(lks_record);
	case LKS_MAP:
		return f.flags == 0 && (f.length == 0 || f.length == 4096);
	case LKS_REPL:
		if (f.flags & ~7u)
			return false;
		return f.flags & 6 ? f.length == 0 : data_length(f.length);
	case LKS_SYNC:
	case LKS_REPLY:
		return f.flags == 0 && (f.length == 0 || data_length(f.length));
	case LKS_COMPARE:
		return (f.flags & ~2u) == 0 && f.length == 0;
	case LKS_REQ:
		if ((f.flags & 0x0e) || op < 1 || op > 6)
			return false;
		return op == LKS_OP_WRITE ? data_length(f.length) : f.length == 0;
	}
	return f.flags == 0 && f.length == 0;
}

bool naive_record(const lks_record &r)
{
	std::set<unsigned> hosts, members;
	std::set<uint64_t> sessions;
	if (r.size < 4096 || r.size % 4096 || r.size > 64ull << 40)
		return false;
	if (r.version == 0 || r.nreplicas > LKS_MAX_REPLICAS || r.nopeners > LKS_MAX_HOSTS || r.flags > 1)
		return false;
	for (unsigned i = 0; i < r.nreplicas; i++) {
		const lks_record_replica &p = r.replicas[i];
		if (p.host < 1 || p.host > 64 || !hosts.insert(p.host).second || p.state < 1 || p.state > 4)
			return false;
		if (p.since > r.version || p.added > r.version)
			return false;
		if (p.state == LKS_REPLICA_INSYNC || p.state == LKS_REPLICA_SUSPECT)
			members.insert(p.host);
	}
	if (r.primary && !members.count(r.primary))
		return false;
	for (unsigned i = 0; i < r.nopeners; i++) {
		const lks_record_opener &o = r.openers[i];
		if (o.host < 1 || o.host > 64 || o.session < 1 || o.session > r.session_serial || !sessions.insert(o.session).second)
			return false;
	}
	return true;
}

}    // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	Input in(data, bytes);
	uint8_t flags = in.u8();
	lks_frame f = in.take<lks_frame>();
	lks_frame sealed = f;
	lks_frame_seal(&sealed);
	if (flags & 1)
		f = sealed;
	bool right = f.magic == sealed.magic && f.crc == sealed.crc;
	CHECK(lks_frame_check(&f) == (right && naive_frame(f) ? 0 : -EPROTO));
	lks_record r = flags & 2 ? base_record(flags >> 2 & 3, 1 << 20) : in.take<lks_record>();
	if (flags & 2)
		for (unsigned n = 0; !in.empty() && n < 100; n++) {
			size_t at = in.take<uint16_t>() % sizeof(r);
			reinterpret_cast<uint8_t *>(&r)[at] = in.u8();
		}
	CHECK(lks_record_check(&r) == (naive_record(r) ? 0 : -EINVAL));
	return 0;
}
