// SPDX-License-Identifier: GPL-2.0-or-later
//
// Events, the course of a run, healing and what must hold afterwards. See world.h.
#include "world.h"

#include "core/internal.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace lockstep::sim {

namespace {

constexpr Time SETTLE_LIMIT = 400 * SECOND;       // longer than any resync, lease and back-off together
constexpr Time SHUT_DOWN_LIMIT = 60 * SECOND;

}    // namespace

Profile random_profile(Random &random, const Options &options)
{
	Profile p{};
	p.hosts = random.pick<unsigned>({3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7});
	p.volumes = random.chance(.75) ? 1 : 2;
	p.lanes = random.pick<unsigned>({1, 1, 2, 2, 2, 3, 4});
	p.net_delay = random.pick<Time>({2 * MS, 20 * MS, 100 * MS, 300 * MS});
	p.net_stall = random.pick<double>({0, .002, .01});
	p.net_damage = random.pick<double>({0, 0, 0, .0003});
	p.disk_delay = random.pick<Time>({1 * MS, 10 * MS, 100 * MS});
	p.disk_slow = random.pick<double>({0, .002, .02});
	p.faults = random.pick<double>({.004, .016, .03});
	p.pace = random.pick<double>({.3, .6, 2, 6});
	p.depth = random.pick<unsigned>({4, 8, 8, 40});
	p.lease_ms = random.pick<uint32_t>({1000, 3000});
	p.sync_rate_kib = random.pick<uint32_t>({0, 0, 0, 2048, 16384});
	p.sync_floor_kib = random.pick<uint32_t>({0, 1024, 4096});
	p.sync_target_ms = random.pick<uint32_t>({0, 1, 10});
	p.freeze_ms = random.pick<uint32_t>({0, 0, 0, 0, 0, 700, 10000});
	p.alloc_failures = options.alloc_failures;
	p.io_errors = options.io_errors;
	p.answer_ms = random.pick<uint32_t>({3000, 10000, LKS_ANSWER_MS});
	if (options.busy) {
		p.hosts = p.replicas = 3;
		p.volumes = 1;
		p.pace = 20;
		p.depth = 40;
		p.net_delay = 2 * MS;
		p.disk_delay = 1 * MS;
		p.faults = p.net_stall = p.net_damage = p.disk_slow = 0;
	}
	return p;
}

World::World(uint64_t seed, const Options &options) : World(seed, options, Profile{}) {}

World::World(uint64_t seed_, const Options &options_, const Profile &given)
	: seed(seed_), options(options_), random(seed_), profile(given.hosts ? given : random_profile(random, options_))
{
	constexpr double WORST = LKS_DRIFT_PERCENT / 100.0;
	constexpr double SKEW = .99 * WORST / (2 + WORST);    // fastest against slowest: just within what L1 allows for
	for (unsigned i = 0; i < profile.hosts; i++) {
		auto h = std::make_unique<Host>();
		h->id = static_cast<uint8_t>(i + 1);
		h->rate = 1 + SKEW * (random.chance(.5) ? random.real() * 2 - 1 : random.chance(.5) ? 1 : -1);
		hosts.push_back(std::move(h));
	}
	links.resize(hosts.size() * hosts.size());
	dialing.resize(links.size());
	cuts.resize(links.size());
	for (unsigned i = 0; i < profile.volumes; i++)
		add_volume();
	for (auto &h : hosts)
		start(*h);
	for (auto &a : hosts)
		for (auto &b : hosts)
			if (a->id < b->id)
				redial(a->id, b->id);
}

World::~World()
{
	for (auto &h : hosts)
		for (auto &i : h->instances)
			if (i)
				discard(*i);
}

// ---- events

void World::at(Time delay, std::function<void()> action)
{
	queue.push({now + delay, fresh(), std::move(action)});
}

void World::at_host(const Host &h, Time delay, std::function<void()> action)
{
	at(delay, [this, id = h.id, boot = h.boot, action = std::move(action)]() mutable {
		Host &host = this->host(id);
		if (!host.up || host.boot != boot)
			return;
		if (host.paused_until > now)
			at_host(host, host.paused_until - now, std::move(action));
		else
			action();
	});
}

void World::at_instance(const Instance &i, Time delay, std::function<void(Instance &)> action)
{
	at_host(i.host, delay, [this, host = i.host.id, vid = i.volume.vid, number = i.serial, action = std::move(action)] {
		if (Instance *found = find(host, vid, number))
			action(*found);
	});
}

void World::run_until(Time t)
{
	while (!queue.empty() && queue.top().when <= t) {
		// The action is moved out before it runs: it may schedule others.
		Scheduled next = std::move(const_cast<Scheduled &>(queue.top()));
		queue.pop();
		now = next.when;
		stats[Stat::events]++;
		digest = (digest ^ (now + next.number * 0x9e3779b97f4a7c15u)) * 0x100000001b3u;
		next.action();
	}
	now = t;
}

void World::step()
{
	for (auto &h : hosts) {
		if (!h->up)
			continue;
		for (auto &v : volumes)
			if (random.chance(.06))
				at_host(*h, random.below(STEP), [this, id = h->id, vid = v->vid] { tell(host(id), volume(vid)); });
		for (auto &i : h->instances)
			if (i && i->core)
				clients_step(*i);
	}
	if (hostile)
		faults_step();
	run_until(now + STEP);
	for (auto &v : volumes)
		check_invariants(*v);
}

// ---- the run

void World::run()
{
	trace("seed %llu: %u hosts, %u volumes of %u bytes a block, %u lanes, lease %u ms", (unsigned long long)seed,
	      profile.hosts, profile.volumes, volumes[0]->block_size, profile.lanes, profile.lease_ms);
	for (unsigned i = 0; i < options.steps; i++)
		step();
	settle("after the faults");
	power_loss();
	settle("after the power loss");
	shut_down();
	stats[Stat::seconds] = now / SECOND;
}

void World::settle(const char *when)
{
	trace("---- healing %s", when);
	heal();
	Time limit = now + SETTLE_LIMIT, next_failover = now + 15 * SECOND;
	std::string why;
	while (!settled(&why)) {
		if (now > limit)
			fail("does not settle %s: %s", when, why.c_str());
		step();
		if (now < next_failover)
			continue;
		next_failover = now + 15 * SECOND;
		for (auto &v : volumes) {
			Instance *p = v->record().primary ? find(v->record().primary, v->vid) : nullptr;
			if (!p || !p->core || p->core->role != LKS_ACTIVE)
				failover(*v);
		}
	}
	trace("---- settled %s", when);
	check_contents(when);
}

bool World::settled(std::string *why)
{
	for (auto &v : volumes) {
		const lks_record &r = v->record();
		std::string name = "volume " + std::to_string(v->vid) + ": ";
		Instance *p = r.primary ? find(r.primary, v->vid) : nullptr;
		if (!p || !p->core || p->core->role != LKS_ACTIVE || p->core->cfg.version != r.version) {
			*why = name + "its primary does not serve, " + describe(r);
			return false;
		}
		const lks_vol &c = *p->core;
		for (const lks_list *l : {&c.queue, &c.heating, &c.writes, &c.live, &c.flushes, &c.reads, &c.held, &c.copies})
			if (!lks_list_empty(l)) {    // perhaps of a client that has crashed
				*why = name + "its primary is never done with its work";
				return false;
			}
		for (uint8_t h : v->replicas) {
			const lks_record_replica *in = replica_in(r, h);
			Instance *i = find(h, v->vid);
			if (in->state != LKS_REPLICA_INSYNC || !i || !i->core) {
				*why = name + "its replica on h" + std::to_string(h) + " is not in sync, " + describe(r);
				return false;
			}
			struct lks_vol_status s{};
			lks_vol_status(i->core, clock_ms(i->host), &s);
			if (h != r.primary && (s.session_with != r.primary || i->core->session_term != r.term)) {
				*why = name + "its replica on h" + std::to_string(h) + " has no session with the primary";
				return false;
			}
		}
		for (auto &h : hosts) {
			Instance *i = find(h->id, v->vid);
			if (i && (i->detaching || !i->transfers.empty())) {
				*why = name + "transfers on h" + std::to_string(h->id) + " do not end";
				return false;
			}
			if (i && !i->ops.empty()) {
				*why = name + "requests on h" + std::to_string(h->id) + " hang (I5), the oldest is op " +
				       std::to_string(i->ops.front()->id);
				return false;
			}
			if (i && (i->door == Door::closing || i->door == Door::fenced || i->door == Door::opening)) {
				*why = name + "an open or close on h" + std::to_string(h->id) + " hangs (I5)";
				return false;
			}
		}
	}
	return true;
}

void World::check_contents(const char *when)
{
	for (auto &v : volumes) {
		const Host &reference = host(v->record().primary);
		uint64_t extent = LKS_EXTENT_BYTES / SECTOR;
		std::vector<bool> written(hosts.size());
		for (uint64_t s = 0; s < v->sectors(); s++) {
			if (s % extent == 0)
				for (uint8_t h : v->replicas)
					written[h - 1u] = extent_bits(host(h), *v, s / extent) & LKS_EXTENT_WRITTEN;
			auto content = [&](const Host &h) { return written[h.id - 1u] ? h.disks[v->vid - 1]->read(s) : 0; };
			uint64_t value = content(reference);
			for (uint8_t h : v->replicas)
				if (uint64_t other = content(host(h)); other != value)
					fail("I4 %s: volume %u sector %llu is %llx on h%u and %llx on h%u", when, v->vid,
					     (unsigned long long)s, (unsigned long long)value, reference.id,
					     (unsigned long long)other, h);
			if (!v->history->may_hold(s, value))
				fail("I2 %s: volume %u sector %llu holds op %llu (%llx), allowed: %s", when, v->vid,
				     (unsigned long long)s, (unsigned long long)(value >> 24), (unsigned long long)value,
				     v->history->allowed(s).c_str());
		}
	}
}

// All hosts at once, in the middle of work: what was flushed must be there afterwards.
void World::power_loss()
{
	busy = true;
	for (unsigned i = 0, n = static_cast<unsigned>(random.between(40, 200)); i < n; i++)
		step();
	trace("---- power loss");
	stats[Stat::blackouts]++;
	for (auto &h : hosts)
		crash(*h, random.between(1, 5) * SECOND);
	busy = false;
}

// Openers close, replicas detach, nothing is left behind, and no peer is needed for it (I5).
void World::shut_down()
{
	trace("---- shutting down");
	for (auto &h : hosts)
		for (auto &i : h->instances)
			if (i && i->core && i->door != Door::closed)
				close_door(*i);
	Time limit = now + SHUT_DOWN_LIMIT;
	auto all = [&](auto predicate) {
		return std::all_of(hosts.begin(), hosts.end(), [&](auto &h) {
			return std::all_of(h->instances.begin(), h->instances.end(), [&](auto &i) { return !i || predicate(*i); });
		});
	};
	while (!all([](Instance &i) { return i.door == Door::closed && i.ops.empty(); })) {
		if (now > limit)
			fail("closing hangs (I5)");
		step();
	}
	for (auto &h : hosts)
		h->daemon = false;
	for (auto &h : hosts)
		for (auto &i : h->instances)
			if (i && i->core)
				reattach(*i, true);
	limit = now + SHUT_DOWN_LIMIT;
	while (!all([](Instance &i) { return !i.core; })) {
		if (now > limit)
			fail("detaching hangs (I5)");
		run_until(now + STEP);
	}
	run_until(now + 10 * SECOND);
	for (auto &h : hosts)
		for (auto &i : h->instances)
			if (i && (!i->memory.empty() || !i->buffers.empty()))
				fail("h%u leaks %zu allocations and %zu buffers of volume %u", h->id, i->memory.size(),
				     i->buffers.size(), i->volume.vid);
}

// ---- words

void World::fail(const char *format, ...)
{
	char text[1000];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	char when[40];
	snprintf(when, sizeof(when), "t=%.3f s: ", static_cast<double>(now) / SECOND);
	throw Violation(std::string(when) + text);
}

void World::trace(const char *format, ...)
{
	if (!tracing())
		return;
	printf("%10.3f  ", static_cast<double>(now) / MS);
	va_list args;
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

}    // namespace lockstep::sim
