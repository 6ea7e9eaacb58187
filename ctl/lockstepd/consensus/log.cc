// SPDX-License-Identifier: GPL-2.0-or-later
//
// Three layers in this file. *Local requests*: what this host's raft is asked while it leads; each ends in an Outcome. *Requests*:
// what propose() and barrier() of this host want; each is tried, at the local raft or at the leader's over a link, until it has
// an outcome or its time is up; see once.h for why a proposal may be tried again. *Turn*: once in
// each turn of the loop we compare what raft says with what we told before (role, leader, applied index), as libraft's v0 API
// has no callbacks for these.
#include "lockstepd/consensus/log.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "lockstepd/consensus/directory.h"
#include "lockstepd/consensus/host_file.h"
#include "lockstepd/consensus/membership.h"
#include "lockstepd/consensus/once.h"
#include "lockstepd/consensus/raft_shim.h"
#include "lockstepd/consensus/snapshot.h"
#include "lockstepd/net/frame.h"

namespace lockstep {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr uint64_t RETRY_MS = 200;              // requests that wait for a leader look again this often
constexpr uint64_t PROMOTION_PAUSE_MS = 10'000; // after a promotion that failed
constexpr const char *MAY_STILL = "; the change may still take effect: look before repeating it";
constexpr const char *VERB_PROPOSE = "consensus.propose";
constexpr const char *VERB_BARRIER = "consensus.barrier";

// How one try ended.
struct Outcome {
	enum What {
		committed,    // index, result
		retry,        // not the leader; this try changed nothing
		unknown,      // this try may be committed some time
		refused,      // message; this try changed nothing, another would not either
		too_late,     // committed, but not applied: see once.h
	} what = retry;
	uint64_t index = 0;
	json result;
	std::string message;
};

using OutcomeFn = std::function<void(Outcome)>;

json to_json(Outcome o)
{
	return {{"what", int(o.what)}, {"index", o.index}, {"result", std::move(o.result)}, {"message", std::move(o.message)}};
}

Outcome from_json(json j)
{
	Outcome o;
	const int what = j.at("what").get<int>();
	o.what = what >= 0 && what <= Outcome::too_late ? Outcome::What(what) : Outcome::unknown;
	o.index = j.at("index").get<uint64_t>();
	o.result = std::move(j.at("result"));
	o.message = j.at("message").get<std::string>();
	return o;
}

[[noreturn]] void die(const char *what)
{
	fprintf(stderr, "lockstepd: bug: %s\n", what);
	abort();
}

}    // namespace

const char *role_name(Role role)
{
	switch (role) {
	case Role::voter: return "voter";
	case Role::learner: return "learner";
	case Role::none: return "joining";
	}
	return "?";
}

// What propose() or barrier() is waiting for.
struct Request {
	Request(Loop &loop) : deadline(loop) {}
	bool is_barrier = false;
	std::string id;              // PROPOSAL_ID_BYTES
	std::string entry;
	ConsensusLog::Answer done;
	Timer deadline;
	uint64_t deadline_ms = 0;
	bool in_flight = false;      // a try is under way
	bool maybe = false;          // an earlier try may be committed some time
	uint64_t first_try_at = 0;   // our applied index then
	bool caught_up = true;       // false: committed, waiting for our own applied index
	uint64_t index = 0;
	json result;
};

// What our own raft is asked.
struct LocalProposal {
	OutcomeFn done;
	json result;
	bool too_late = false;
};

struct ConsensusLog::Impl : std::enable_shared_from_this<ConsensusLog::Impl> {
	Impl(Loop &loop, Listener &listener, Dialer &dialer, Links &links, ConsensusOptions options, StateMachine machine)
		: loop(loop), listener(listener), dialer(dialer), links(links), options(std::move(options)),
		  machine(std::move(machine)), retry(loop), rebalancer(loop), transfer_limit(loop)
	{
	}

	Loop &loop;
	Listener &listener;
	Dialer &dialer;
	Links &links;
	const ConsensusOptions options;
	const StateMachine machine;
	std::function<std::vector<Member>()> wanted;
	std::vector<std::function<void(bool, int)>> role_watchers;

	lks_raft *raft = nullptr;
	bool ready = false;        // started and not closing
	bool closing = false;
	std::string restore_error;
	bool restore_damage = false;    // not what was written
	Once once;
	Timer retry, rebalancer, transfer_limit;
	std::function<void()> closed_callback;

	uint64_t next_id = 1;
	std::map<uint64_t, std::unique_ptr<Request>> requests;
	std::map<uint64_t, LocalProposal> locals;      // by token
	std::map<uint64_t, uint64_t> token_at;         // index in the log -> token
	struct Barrier {
		uint64_t before;    // last index when it began
		std::vector<OutcomeFn> waiting;
	};
	std::map<uint64_t, Barrier> barriers;    // by token
	bool barrier_running = false;
	std::vector<OutcomeFn> barrier_next;

	std::map<uint64_t, Dialer::Token> dials;       // by address of the lks_raft_dial
	std::set<uint64_t> unreachable;                // raft ids; logged already

	bool raft_leads = false;         // as seen in the last turn
	uint64_t raft_leader = 0;
	mutable std::pair<uint64_t, int> known_leader;    // raft id, host
	uint64_t led_term = 0;           // the term in which we are settled as leader
	bool settling = false;
	uint64_t leading_since_ms = 0;
	bool told_leads = false;
	int told_leader = 0;
	std::map<uint64_t, uint64_t> no_promotion_before_ms;    // by raft id
	std::string change_text;         // the change under way, for the log
	uint64_t promoting = 0;
	Reached noted;

	void later(std::function<void()> f);
	lks_raft_ops ops();
	Done start();
	void close(std::function<void()> done);
	bool hand_over();
	void close_raft();

	std::vector<Member> members() const;
	std::optional<Member> member(uint64_t raft_id) const;
	std::string address_of(uint64_t raft_id) const;
	int leader_host() const;
	bool settled() const { return ready && lks_raft_is_leader(raft) && led_term == lks_raft_term(raft); }
	std::string quorum_message() const;

	void dial(uint64_t id, const std::string &address, lks_raft_dial *dial);
	void accept(const Hello &hello, int fd);
	void apply(uint64_t index, std::string_view entry);
	std::string snapshot() const;
	bool restore(std::string_view wrapped);

	void propose_here(const std::string &entry, OutcomeFn done);
	void barrier_here(OutcomeFn done);
	void start_barrier(std::vector<OutcomeFn> waiting);
	void proposed(uint64_t token, int status, uint64_t index);
	void barrier_done(uint64_t token, int status);

	void submit(std::unique_ptr<Request> request, uint64_t timeout_ms);
	void try_request(uint64_t id);
	void tried(uint64_t id, Outcome outcome);
	void give_up(uint64_t id);
	void finish(uint64_t id, Result<json> result);
	void try_all();

	void turn();
	void note();
	void became_leader();
	void rebalance();
	void changed(int status);
};

void ConsensusLog::Impl::later(std::function<void()> f)
{
	loop.post([weak = weak_from_this(), f = std::move(f)] {
		if (const auto alive = weak.lock())
			f();
	});
}

// --- members --------------------------------------------------------------------------------------------------------------

std::vector<Member> ConsensusLog::Impl::members() const
{
	std::vector<Member> out;
	for (size_t i = 0; raft && i < lks_raft_members(raft); i++) {
		uint64_t id;
		const char *address;
		lks_raft_role role;
		lks_raft_member(raft, i, &id, &address, &role);
		Member m = decode_member(address).value_or(Member{});
		m.raft_id = id;
		m.role = role == LKS_RAFT_VOTER ? Role::voter : role == LKS_RAFT_STANDBY ? Role::learner : Role::none;
		out.push_back(std::move(m));
	}
	return out;
}

std::optional<Member> ConsensusLog::Impl::member(uint64_t raft_id) const
{
	for (Member &m : members()) {
		if (m.raft_id == raft_id)
			return std::move(m);
	}
	return std::nullopt;
}

std::string ConsensusLog::Impl::address_of(uint64_t raft_id) const
{
	for (size_t i = 0; raft && i < lks_raft_members(raft); i++) {
		uint64_t id;
		const char *address;
		lks_raft_role role;
		lks_raft_member(raft, i, &id, &address, &role);
		if (id == raft_id)
			return address;
	}
	return "";
}

int ConsensusLog::Impl::leader_host() const
{
	if (!ready)
		return 0;
	if (lks_raft_is_leader(raft))
		return options.self.host;
	const uint64_t id = lks_raft_leader(raft);
	if (id == 0)
		return 0;
	// Asked in each turn of the loop; and a raft id never changes its host.
	if (id != known_leader.first) {
		const auto m = member(id);
		known_leader = m ? std::pair{id, m->host} : std::pair{uint64_t(0), 0};
	}
	return known_leader.second;
}

std::string ConsensusLog::Impl::quorum_message() const
{
	size_t voters = 0, reachable = 0;
	std::string missing;
	for (const Member &m : members()) {
		if (m.role != Role::voter)
			continue;
		voters++;
		if (m.raft_id == options.self.raft_id || links.up(m.host))
			reachable++;
		else
			missing += (missing.empty() ? "" : ", ") + links.name(m.host);
	}
	const std::string count = std::to_string(reachable) + " of " + std::to_string(voters) + " voters reachable";
	if (voters == 0)
		return "no quorum: the other hosts have not made contact with this one yet";
	if (reachable * 2 > voters)
		return "no leader: " + count + ", an election is under way; try again";
	return "no quorum: " + count + " (missing: " + missing + ")";
}

// --- connections for raft ---------------------------------------------------------------------------------------------------

void ConsensusLog::Impl::dial(uint64_t id, const std::string &address, lks_raft_dial *dial)
{
	const auto known = decode_member(address);
	std::vector<std::string> addresses = known ? known->addresses : std::vector<std::string>();
	for (const Member &m : wanted ? wanted() : std::vector<Member>()) {
		if (m.raft_id == id)
			addresses = m.addresses;
	}
	Hello hello;
	hello.purpose = Purpose::raft;
	hello.to_host = known ? known->host : 0;
	hello.to_raft = id;
	// As raft's configuration has it, since the receiver's raft takes another spelling for a change of address.
	hello.from_address = address_of(options.self.raft_id);
	if (hello.from_address.empty())
		hello.from_address = encode_member(options.self);
	const auto key = uint64_t(reinterpret_cast<uintptr_t>(dial));
	dials[key] = dialer.dial(std::move(addresses), 0, hello, [this, id, key, dial](Result<int> fd, const HelloAnswer &) {
		dials.erase(key);
		if (fd)
			unreachable.erase(id);
		else if (unreachable.insert(id).second)
			loop.log("consensus cannot reach member " + std::to_string(id) + ": " + fd.error().message);
		lks_raft_dialed(dial, fd ? *fd : -1);
	});
}

void ConsensusLog::Impl::accept(const Hello &hello, int fd)
{
	const auto claimed = decode_member(hello.from_address);
	const auto known = member(hello.from_raft);
	const int host = known ? known->host : claimed ? claimed->host : 0;
	// A raft id that its host does not have any more must not vote, whatever has become of it.
	bool former = false;
	for (const Member &m : wanted ? wanted() : std::vector<Member>())
		former = former || (m.host == hello.from_host && m.raft_id > hello.from_raft);
	if (former || !ready || host != hello.from_host || (!known && claimed->raft_id != hello.from_raft)) {
		::close(fd);
		return;
	}
	lks_raft_accept(raft, hello.from_raft, known ? address_of(hello.from_raft).c_str() : hello.from_address.c_str(), fd);
}

// --- the state machine ------------------------------------------------------------------------------------------------------

void ConsensusLog::Impl::apply(uint64_t index, std::string_view wrapped)
{
	const auto entry = unwrap_entry(wrapped);
	if (!entry)
		die("an entry of the log is malformed");
	json result;
	const bool too_late = Once::too_late(index, entry->first_try_at);
	if (const json *known = once.result_of(entry->id)) {
		result = *known;
	} else if (!too_late) {
		result = machine.apply(index, entry->payload);
		once.remember(entry->id, result);
	}
	const auto it = token_at.find(index);
	if (it == token_at.end())
		return;
	LocalProposal &mine = locals.at(it->second);
	mine.too_late = too_late && result.is_null();
	mine.result = std::move(result);
}

// In the envelope: u64 length of what `once` knows, as CBOR; that; the state machine's bytes.
std::string ConsensusLog::Impl::snapshot() const
{
	std::string out(sizeof(uint64_t), '\0');
	json::to_cbor(once.save(), out);
	const uint64_t once_bytes = out.size() - sizeof once_bytes;
	memcpy(out.data(), &once_bytes, sizeof once_bytes);
	out += machine.snapshot();
	return wrap_snapshot(out);
}

bool ConsensusLog::Impl::restore(std::string_view wrapped)
{
	const Unpacked snapshot = unpack_snapshot(wrapped, once);
	restore_damage = !snapshot.whole;
	if (snapshot.whole && snapshot.understood && machine.restore(snapshot.state))
		return true;
	restore_error = snapshot.whole ? "this version of lockstepd does not understand it" : "its checksum or format is wrong";
	loop.log("cannot use a snapshot of the cluster's state: " + restore_error);
	return false;
}

lks_raft_ops ConsensusLog::Impl::ops()
{
	lks_raft_ops o{};
	o.ctx = this;
	// noexcept: an exception must not travel through C.
	o.apply = [](void *c, uint64_t index, const void *data, size_t bytes) noexcept {
		static_cast<Impl *>(c)->apply(index, {static_cast<const char *>(data), bytes});
	};
	o.snapshot = [](void *c, void **data, size_t *bytes) noexcept {
		const std::string wrapped = static_cast<Impl *>(c)->snapshot();
		*data = lks_raft_alloc(wrapped.size());
		*bytes = wrapped.size();
		if (*data)
			memcpy(*data, wrapped.data(), wrapped.size());
		return *data != nullptr;
	};
	o.restore = [](void *c, const void *data, size_t bytes) noexcept {
		return static_cast<Impl *>(c)->restore({static_cast<const char *>(data), bytes});
	};
	o.proposed = [](void *c, void *token, int status, uint64_t index) noexcept {
		static_cast<Impl *>(c)->proposed(uint64_t(reinterpret_cast<uintptr_t>(token)), status, index);
	};
	o.barrier_done = [](void *c, void *token, int status) noexcept {
		static_cast<Impl *>(c)->barrier_done(uint64_t(reinterpret_cast<uintptr_t>(token)), status);
	};
	o.changed = [](void *c, int status) noexcept { static_cast<Impl *>(c)->changed(status); };
	o.dial = [](void *c, uint64_t id, const char *address, lks_raft_dial *d) noexcept {
		static_cast<Impl *>(c)->dial(id, address, d);
	};
	o.cancel_dials = [](void *c) noexcept {
		auto *self = static_cast<Impl *>(c);
		for (const auto &[key, token] : self->dials)
			self->dialer.cancel(token);
		self->dials.clear();
	};
	o.turn = [](void *c) noexcept { static_cast<Impl *>(c)->turn(); };
	o.diagnostic = [](void *c, const char *message) noexcept {
		static_cast<Impl *>(c)->loop.log(std::string("consensus: ") + message);
	};
	return o;
}

// --- what our own raft is asked -----------------------------------------------------------------------------------------------

void ConsensusLog::Impl::propose_here(const std::string &entry, OutcomeFn done)
{
	if (!ready) {
		done({});
		return;
	}
	const uint64_t token = next_id++;
	uint64_t index = 0;
	const int status = lks_raft_propose(raft, entry.data(), entry.size(), reinterpret_cast<void *>(uintptr_t(token)), &index);
	if (status != 0) {
		if (lks_raft_is_not_leader(status))
			done({});
		else
			done({Outcome::refused, 0, nullptr, std::string("the log takes no entry now: ") + lks_raft_strerror(status)});
		return;
	}
	locals[token].done = std::move(done);
	token_at[index] = token;
}

void ConsensusLog::Impl::proposed(uint64_t token, int status, uint64_t index)
{
	const auto it = locals.find(token);
	LocalProposal p = std::move(it->second);
	locals.erase(it);
	if (token_at.contains(index) && token_at[index] == token)
		token_at.erase(index);
	if (status != 0) {
		p.done({Outcome::unknown, 0, nullptr, ""});
		return;
	}
	p.done({p.too_late ? Outcome::too_late : Outcome::committed, index, std::move(p.result), ""});
	// What an entry is for often happens on other hosts: the heir of a volume, the replica to be made, a proposer that waits until
	// it has applied it. They hear of a commit with the next entry or heartbeat; so after the last one comes an empty one.
	if (locals.empty() && lks_raft_members(raft) > 1)
		barrier_here([](Outcome) {});
}

// Barriers cost a log entry each; those that come in while one is under way share the next.
void ConsensusLog::Impl::barrier_here(OutcomeFn done)
{
	if (barrier_running)
		barrier_next.push_back(std::move(done));
	else
		start_barrier({std::move(done)});
}

void ConsensusLog::Impl::start_barrier(std::vector<OutcomeFn> waiting)
{
	const uint64_t token = next_id++, before = ready ? lks_raft_last(raft) : 0;
	if (!ready || lks_raft_barrier(raft, reinterpret_cast<void *>(uintptr_t(token))) != 0) {
		for (const auto &done : waiting)
			done({});
		return;
	}
	barrier_running = true;
	barriers[token] = {before, std::move(waiting)};
}

void ConsensusLog::Impl::barrier_done(uint64_t token, int status)
{
	const auto it = barriers.find(token);
	const Barrier barrier = std::move(it->second);
	barriers.erase(it);
	barrier_running = false;
	auto next = std::move(barrier_next);
	barrier_next.clear();
	if (!next.empty())
		start_barrier(std::move(next));
	// What was there before it is what whoever asked has to see, not the barrier: another host hears that this is committed with the next
	// heartbeat only.
	for (const auto &done : barrier.waiting)
		done(status == 0 ? Outcome{Outcome::committed, barrier.before, nullptr, ""} : Outcome{});
}

// --- requests -----------------------------------------------------------------------------------------------------------------

void ConsensusLog::Impl::submit(std::unique_ptr<Request> request, uint64_t timeout_ms)
{
	loop.assert_on_loop();
	const uint64_t id = next_id++;
	Request &r = *(requests[id] = std::move(request));
	if (r.entry.size() > ENTRY_MAX_BYTES) {
		later([this, id] { finish(id, usage_error("an entry of the log is too large")); });
		return;
	}
	if (!ready) {
		later([this, id] { finish(id, failed("consensus does not run on this host")); });
		return;
	}
	r.deadline_ms = Loop::now_ms() + timeout_ms;
	r.deadline.once(timeout_ms, [this, id] { give_up(id); });
	later([this, id] { try_request(id); });
	if (!retry.running())
		retry.every(RETRY_MS, [this] { try_all(); });
}

void ConsensusLog::Impl::try_all()
{
	if (requests.empty()) {
		retry.stop();
		return;
	}
	std::vector<uint64_t> ids;
	for (const auto &[id, r] : requests)
		ids.push_back(id);
	for (const uint64_t id : ids)
		try_request(id);
}

void ConsensusLog::Impl::try_request(uint64_t id)
{
	const auto it = requests.find(id);
	if (!ready || it == requests.end() || it->second->in_flight || !it->second->caught_up)
		return;
	Request &r = *it->second;
	const int leader = leader_host();
	if (leader == options.self.host) {
		r.in_flight = true;
		const auto done = [this, id](Outcome o) { later([this, id, o = std::move(o)]() mutable { tried(id, std::move(o)); }); };
		if (r.is_barrier) {
			barrier_here(done);
		} else {
			const std::string wrapped = wrap_entry(r.id, r.first_try_at, r.entry);
			r.first_try_at = std::max<uint64_t>(lks_raft_applied(raft), 1);
			propose_here(wrapped, done);
		}
		return;
	}
	if (leader == 0 || !links.up(leader))
		return;
	r.in_flight = true;
	json body = json::object();
	if (!r.is_barrier) {
		const std::string wrapped = wrap_entry(r.id, r.first_try_at, r.entry);
		body["entry"] = json::binary(std::vector<uint8_t>(wrapped.begin(), wrapped.end()));
		r.first_try_at = std::max<uint64_t>(lks_raft_applied(raft), 1);
	}
	const uint64_t now = Loop::now_ms();
	links.call(leader, r.is_barrier ? VERB_BARRIER : VERB_PROPOSE, std::move(body), r.deadline_ms > now ? r.deadline_ms - now : 1,
		   [weak = weak_from_this(), id](Result<json> answer) {
			   const auto self = weak.lock();
			   if (!self)
				   return;
			   Outcome o{Outcome::unknown, 0, nullptr, ""};
			   if (answer) {
				   try {
					   o = from_json(std::move(*answer));
				   } catch (const json::exception &) {
				   }
			   }
			   self->tried(id, std::move(o));
		   });
}

void ConsensusLog::Impl::tried(uint64_t id, Outcome o)
{
	const auto it = requests.find(id);
	if (it == requests.end())
		return;
	Request &r = *it->second;
	r.in_flight = false;
	switch (o.what) {
	case Outcome::committed:
		if (!ready || lks_raft_applied(raft) >= o.index) {
			finish(id, std::move(o.result));
			return;
		}
		r.caught_up = false;
		r.index = o.index;
		r.result = std::move(o.result);
		return;
	case Outcome::retry:
		return;    // try_all() comes by
	case Outcome::unknown:
		r.maybe = true;
		return;    // likewise
	case Outcome::too_late:
		finish(id, failed(std::string("too much has changed while this was tried") + MAY_STILL));
		return;
	case Outcome::refused:
		finish(id, failed(o.message));
		return;
	}
}

void ConsensusLog::Impl::give_up(uint64_t id)
{
	const Request &r = *requests.at(id);
	if (!r.caught_up)
		finish(id, failed("the change was committed, but this host did not hear so from the leader in time"));
	else if ((r.in_flight || r.maybe) && !r.is_barrier)
		finish(id, coded("no-quorum", failed(quorum_message() + MAY_STILL)));
	else
		finish(id, coded("no-quorum", failed(quorum_message())));
}

void ConsensusLog::Impl::finish(uint64_t id, Result<json> result)
{
	const auto it = requests.find(id);
	if (it == requests.end())
		return;
	const auto done = std::move(it->second->done);
	requests.erase(it);
	done(std::move(result));
}

// --- turn -----------------------------------------------------------------------------------------------------------------------

void ConsensusLog::Impl::turn()
{
	const bool leads = lks_raft_is_leader(raft);
	const uint64_t leader = lks_raft_leader(raft);
	if (leads && !raft_leads)
		later([this] { became_leader(); });
	if (leads != raft_leads || leader != raft_leader) {
		raft_leads = leads;
		raft_leader = leader;
		later([this] { try_all(); });
	}
	const bool settled_now = settled();
	const int host = leader_host();
	if (settled_now != told_leads || host != told_leader) {
		told_leads = settled_now;
		told_leader = host;
		if (host != 0)
			loop.log("consensus: " + (host == options.self.host ? "this host" : links.name(host)) + " leads in term " +
				 std::to_string(lks_raft_term(raft)) +
				 (host == options.self.host && !settled_now ? " and is catching up" : ""));
		else
			loop.log("consensus: no leader is known");
		later([this, settled_now, host] {
			const auto watchers = role_watchers;
			for (const auto &tell : watchers)
				tell(settled_now, host);
		});
	}
	const uint64_t applied = lks_raft_applied(raft);
	for (const auto &[id, r] : requests) {
		if (!r->caught_up && applied >= r->index)
			later([this, id] {
				const auto it = requests.find(id);
				if (it != requests.end())
					finish(id, std::move(it->second->result));
			});
	}
}

// A new leader may know of entries that it does not know to be committed; a barrier of its own settles them.
void ConsensusLog::Impl::became_leader()
{
	if (!ready || !lks_raft_is_leader(raft))
		return;
	const uint64_t term = lks_raft_term(raft);
	leading_since_ms = Loop::now_ms();
	no_promotion_before_ms.clear();
	settling = true;
	barrier_here([this, term](Outcome o) {
		settling = false;
		if (o.what == Outcome::committed && ready && lks_raft_is_leader(raft) && lks_raft_term(raft) == term) {
			led_term = term;
			later([this] { rebalance(); });
		}
	});
}

// Once a second, if anything has changed: what is applied is on this disk. Never less than before: after a start nothing is applied but the
// snapshot until a leader has been heard.
void ConsensusLog::Impl::note()
{
	if (!ready)
		return;
	const Reached now = {std::max<uint64_t>(noted.term, lks_raft_term(raft)), std::max<uint64_t>(noted.index, lks_raft_applied(raft))};
	if (now.term == noted.term && now.index == noted.index)
		return;
	noted = now;
	if (Done done = note_reached(options.dir, now); !done)
		loop.log(done.error().message);
}

// --- voters -----------------------------------------------------------------------------------------------------------------------

void ConsensusLog::Impl::rebalance()
{
	if (ready && lks_raft_is_leader(raft) && !settled() && !settling)
		became_leader();    // the first barrier was not taken
	if (!settled() || !wanted || lks_raft_change_pending(raft))
		return;
	const uint64_t now = Loop::now_ms();
	MembershipView view;
	view.current = members();
	view.wanted = wanted();
	view.self = options.self.raft_id;
	view.voter_replace_ms = options.voter_replace_ms;
	view.silent_ms = [&](int host) { return now - std::min(now, std::max(links.last_heard(host), leading_since_ms)); };
	view.present = [&](const Member &m) { return links.up(m.host) && no_promotion_before_ms[m.raft_id] <= now; };
	const auto change = next_change(view);
	if (!change)
		return;
	const Member &m = change->member;
	int status = 0;
	promoting = 0;
	switch (change->what) {
	case MembershipChange::add:
		change_text = "adding " + links.name(m.host) + " (member " + std::to_string(m.raft_id) + ")";
		status = lks_raft_add(raft, m.raft_id, encode_member(m).c_str());
		break;
	case MembershipChange::remove:
		change_text = "removing " + links.name(m.host) + " (member " + std::to_string(m.raft_id) + ")";
		status = lks_raft_remove(raft, m.raft_id);
		break;
	case MembershipChange::make_learner:
		change_text = "making " + links.name(m.host) + " a learner";
		status = lks_raft_assign(raft, m.raft_id, LKS_RAFT_STANDBY);
		break;
	case MembershipChange::make_voter:
		change_text = "making " + links.name(m.host) + " a voter";
		promoting = m.raft_id;
		status = lks_raft_assign(raft, m.raft_id, LKS_RAFT_VOTER);
		break;
	case MembershipChange::step_down:
		lks_raft_transfer(raft);
		return;
	}
	if (status != 0)
		changed(status);
}

void ConsensusLog::Impl::changed(int status)
{
	if (status == 0) {
		loop.log("consensus: " + change_text + ": done");
		later([this] { rebalance(); });
		return;
	}
	loop.log("consensus: " + change_text + " failed: " + lks_raft_strerror(status));
	if (promoting != 0)
		no_promotion_before_ms[promoting] = Loop::now_ms() + PROMOTION_PAUSE_MS;
}

// --- life -------------------------------------------------------------------------------------------------------------------------

Done ConsensusLog::Impl::start()
{
	if (raft)
		die("consensus was started twice");
	if (Done whole = check_reached(options); !whole)
		return whole;
	noted = read_reached(options.dir);
	char errmsg[LKS_RAFT_ERRMSG_BYTES];
	const lks_raft_ops callbacks = ops();
	const std::string address = encode_member(options.self);
	const lks_raft_config config = shim_config(options, loop.uv(), address);
	raft = lks_raft_new(&config, &callbacks, errmsg);
	if (!raft)
		return failed("cannot open the log in " + options.dir + ": " + errmsg);
	const int status = lks_raft_start(raft);
	if (status != 0) {
		const std::string why = !restore_error.empty() ? "its snapshot cannot be used: " + restore_error
							       : std::string(lks_raft_errmsg(raft));
		lks_raft_close(std::exchange(raft, nullptr), nullptr, nullptr);
		Error error = failed("cannot load the log in " + options.dir + ": " + why);
		// A snapshot that is whole but not understood is of another version, no damage: its checksum holds.
		if (restore_error.empty() ? lks_raft_is_damage(status) : restore_damage)
			error.code = LOG_DAMAGED;
		return error;
	}
	ready = true;
	listener.handlers().on_raft = [this](const Hello &hello, int fd) { accept(hello, fd); };
	links.on_call(VERB_PROPOSE, [this](int, json body, Links::Reply reply) {
		const auto &bytes = body.at("entry").get_binary();
		const std::string wrapped(bytes.begin(), bytes.end());
		if (!unwrap_entry(wrapped)) {
			reply(failed("the entry is malformed"));
			return;
		}
		propose_here(wrapped, [this, reply](Outcome o) {
			reply(to_json(std::move(o)));
		});
	});
	links.on_call(VERB_BARRIER, [this](int, json, Links::Reply reply) {
		barrier_here([reply](Outcome o) { reply(to_json(std::move(o))); });
	});
	links.on_peer_up([weak = weak_from_this()](int) {
		if (const auto self = weak.lock())
			self->try_all();
	});
	rebalancer.every(options.rebalance_ms, [this] {
		note();
		rebalance();
	});
	return Nothing{};
}

void ConsensusLog::Impl::close(std::function<void()> done)
{
	if (closing)
		die("consensus was closed twice");
	closing = true;
	closed_callback = std::move(done);
	rebalancer.stop();
	retry.stop();
	std::vector<uint64_t> ids;
	for (const auto &[id, r] : requests)
		ids.push_back(id);
	for (const uint64_t id : ids)
		finish(id, failed(std::string("this host's daemon is stopping") + MAY_STILL));
	if (!raft) {
		later([this] { closed_callback(); });
		return;
	}
	if (ready && lks_raft_is_leader(raft)) {
		// Not at once when a change of members is under way: it is better committed than left to chance.
		const uint64_t end = Loop::now_ms() + options.election_ms;
		transfer_limit.every(10, [this, end] {
			const bool leads = lks_raft_is_leader(raft);
			if (leads && Loop::now_ms() < end && hand_over())
				return;
			transfer_limit.stop();
			close_raft();
		});
		return;
	}
	close_raft();
}

// False: there is nobody to hand over to.
bool ConsensusLog::Impl::hand_over()
{
	const auto all = members();
	const bool another = std::ranges::any_of(all, [&](const Member &m) {
		return m.raft_id != options.self.raft_id && m.role == Role::voter && links.up(m.host);
	});
	if (another && !lks_raft_change_pending(raft))
		lks_raft_transfer(raft);    // or it is under way already
	return another;
}

void ConsensusLog::Impl::close_raft()
{
	ready = false;
	listener.handlers().on_raft = nullptr;
	const auto refuse = [](int, json, Links::Reply reply) { reply(to_json({})); };
	links.on_call(VERB_PROPOSE, refuse);
	links.on_call(VERB_BARRIER, refuse);
	lks_raft_close(
		raft,
		[](void *c) {
			auto *self = static_cast<Impl *>(c);
			self->raft = nullptr;
			self->later([self] { self->closed_callback(); });
		},
		this);
}

ConsensusLog::ConsensusLog(Loop &loop, Listener &listener, Dialer &dialer, Links &links, ConsensusOptions options, StateMachine machine)
	: impl_(std::make_shared<Impl>(loop, listener, dialer, links, std::move(options), std::move(machine)))
{
}

ConsensusLog::~ConsensusLog()
{
	if (impl_->raft)
		die("consensus was not closed");
}

Done ConsensusLog::start()
{
	return impl_->start();
}

void ConsensusLog::close(std::function<void()> done)
{
	impl_->close(std::move(done));
}

bool ConsensusLog::closed() const
{
	return impl_->raft == nullptr;
}

void ConsensusLog::propose(std::string entry, Answer done, uint64_t timeout_ms)
{
	auto r = std::make_unique<Request>(impl_->loop);
	r->id.resize(PROPOSAL_ID_BYTES);
	if (getrandom(r->id.data(), r->id.size(), 0) != ssize_t(r->id.size()))
		abort();
	r->entry = std::move(entry);
	r->done = std::move(done);
	impl_->submit(std::move(r), timeout_ms);
}

void ConsensusLog::barrier(std::function<void(Done)> done, uint64_t timeout_ms)
{
	auto r = std::make_unique<Request>(impl_->loop);
	r->is_barrier = true;
	r->done = [done = std::move(done)](Result<json> result) { done(result ? Done(Nothing{}) : Done(result.error())); };
	impl_->submit(std::move(r), timeout_ms);
}

bool ConsensusLog::is_leader() const
{
	return impl_->settled();
}

int ConsensusLog::leader() const
{
	return impl_->leader_host();
}

uint64_t ConsensusLog::term() const
{
	return impl_->raft ? lks_raft_term(impl_->raft) : 0;
}

uint64_t ConsensusLog::applied_index() const
{
	return impl_->raft ? lks_raft_applied(impl_->raft) : 0;
}

std::vector<Member> ConsensusLog::members() const
{
	return impl_->members();
}

void ConsensusLog::on_role_change(std::function<void(bool, int)> f)
{
	impl_->role_watchers.push_back(std::move(f));
}

void ConsensusLog::set_wanted(std::function<std::vector<Member>()> wanted)
{
	impl_->wanted = std::move(wanted);
}

void ConsensusLog::rebalance_voters()
{
	impl_->later([self = impl_.get()] { self->rebalance(); });
}

void ConsensusLog::step_down()
{
	if (impl_->ready)
		lks_raft_transfer(impl_->raft);
}

std::string ConsensusLog::quorum_message() const
{
	return impl_->quorum_message();
}

}    // namespace lockstep
