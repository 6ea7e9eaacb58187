// SPDX-License-Identifier: GPL-2.0-or-later
//
// What clients of one volume have been told, sector by sector, and what they may therefore still be told: the checker of
// the invariants I1 and I2.
//
// Each write leaves an entry in the list of every sector that it covers. An entry *dies* when it is certain that another
// one has replaced it: a write that was issued after it was done has completed (the last completed write, or one concurrent
// with it, is what a read returns), or a read returned another value (a value once read stays). A read may return the
// value of an entry that lived at some time between the read's issue and its completion.
//
// A new incarnation (S2) revives the dead, except those that were certainly replaced on all disks: whatever died before a
// completed flush was issued, or was replaced by a completed FUA write.
//
// Only the write requests of a session that owns the volume (of a shared one: the newest of its host) leave entries. Whatever a fenced session still manages to
// write therefore shows up as a value that nobody may read. Times are stamps: every event that the checker sees gets the
// next number.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lockstep::sim {

constexpr uint64_t NEVER = UINT64_MAX;

struct Span {
	uint64_t first, count;    // sectors
};

class History {
public:
	explicit History(uint64_t sectors) : lists(sectors) {}

	void grow(uint64_t sectors) { lists.resize(sectors); }
	uint64_t stamp() { return ++now; }
	uint64_t owner(uint8_t key) const { return key < owners.size() ? owners[key] : 0; }
	uint64_t incarnation() const { return incarnation_; }

	// Session has been told that it may work: every other one of the same key is fenced, and what it had in flight has been
	// drained (O2). The key of all sessions of an exclusive volume is 0; of a shared one's it is the host.
	void opened(uint64_t session, uint8_t key);
	// value_of(op, sector) is what is written; zeros: value 0.
	void write_issued(uint64_t op, uint64_t session, uint8_t key, Span span, bool zeros);
	// false: the session had been fenced before the write was issued, hence it must not have completed.
	bool write_done(uint64_t op, bool fua);
	// Empty, or what is wrong with a read of this sector that was issued at `issued` and returned value.
	std::string read_done(uint64_t sector, uint64_t value, uint64_t issued);
	void flush_done(uint64_t session, uint8_t key, uint64_t issued, uint64_t incarnation_at_issue);
	// A primary of a new incarnation serves.
	void new_incarnation(uint64_t number);
	// A read was issued or ended; bounds how long the dead must be remembered.
	void read_begins(uint64_t issued) { reads[issued]++; }
	void read_ends(uint64_t issued);

	// After healing: may the sector hold this value for good?
	bool may_hold(uint64_t sector, uint64_t value) const;
	std::string allowed(uint64_t sector) const;

	static uint64_t value_of(uint64_t op, uint64_t sector) { return op << 24 | sector; }

private:
	struct Entry {
		uint64_t op, value, session;
		uint64_t issued;
		uint64_t done;      // NEVER: it may still take effect
		uint64_t died;      // NEVER: alive
		bool gone;          // durably replaced: no incarnation brings it back
	};
	struct Pending {
		uint64_t session;
		uint8_t key;
		Span span;
		uint64_t issued;
		bool legal;
	};
	std::vector<Entry> &list(uint64_t sector);
	void forget(std::vector<Entry> &entries);

	uint64_t now = 0, incarnation_ = 0;
	std::vector<uint64_t> owners = std::vector<uint64_t>(65);    // by key: the session that may write
	uint64_t flushed = 0;                             // what died up to here is gone
	std::vector<std::vector<Entry>> lists;            // empty: holds zeros, never written
	std::vector<uint64_t> touched;
	std::map<uint64_t, Pending> pending;              // writes by op
	std::map<uint64_t, unsigned> reads;               // stamps of issue of reads under way
};

}    // namespace lockstep::sim
