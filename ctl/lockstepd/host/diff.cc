// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstepd/host/diff.h"

#include <openssl/evp.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <future>
#include <optional>

#include <fmt/format.h>

#include "lockstepd/host/command.h"
#include "lockstepd/host/cow.h"
#include "lockstepd/host/daemon.h"
#include "lockstepd/host/device_mapper.h"

namespace lockstep {

namespace {

// The number of ` name="123"` in a tag.
std::optional<uint64_t> attribute(std::string_view tag, std::string_view name)
{
	const std::string begin = fmt::format(" {}=\"", name);
	const size_t at = tag.find(begin);
	if (at == tag.npos)
		return std::nullopt;
	const char *first = tag.data() + at + begin.size(), *end = tag.data() + tag.size();
	uint64_t n = 0;
	auto [behind, error] = std::from_chars(first, end, n);
	if (error != std::errc() || behind == end || *behind != '"')
		return std::nullopt;
	return n;
}

}    // namespace

ChangedBlocks::ChangedBlocks(uint64_t size_bytes) : blocks((size_bytes + DIFF_BLOCK_BYTES - 1) / DIFF_BLOCK_BYTES), bitmap((blocks + 7) / 8) {}

void ChangedBlocks::mark(uint64_t from_bytes, uint64_t to_bytes)
{
	const uint64_t end = std::min((to_bytes + DIFF_BLOCK_BYTES - 1) / DIFF_BLOCK_BYTES, blocks);
	for (uint64_t b = from_bytes / DIFF_BLOCK_BYTES; b < end; b++) {
		uint8_t &byte = bitmap[b / 8];
		const uint8_t bit = uint8_t(0x80 >> (b % 8));
		changed += !(byte & bit);
		byte |= bit;
	}
}

DeltaReader::DeltaReader(uint64_t size_bytes) : result_(size_bytes) {}

void DeltaReader::feed(std::string_view text)
{
	rest_ += text;
	size_t from = 0;
	for (size_t to; (to = rest_.find('\n', from)) != rest_.npos; from = to + 1)
		line(std::string_view(rest_).substr(from, to - from));
	rest_.erase(0, from);
}

void DeltaReader::line(std::string_view text)
{
	const size_t at = text.find('<');
	if (at == text.npos || !error_.empty())
		return;
	const std::string_view tag = text.substr(at);
	if (tag.starts_with("<superblock ")) {
		chunk_bytes_ = attribute(tag, "data_block_size").value_or(0) * 512;
		if (!chunk_bytes_ || chunk_bytes_ > 1u << 30)
			error_ = std::string(tag);
		return;
	}
	if (tag.starts_with("</superblock>")) {
		whole_ = true;
		return;
	}
	if (!tag.starts_with("<different ") && !tag.starts_with("<left_only ") && !tag.starts_with("<right_only "))
		return;
	const auto begin = attribute(tag, "begin"), length = attribute(tag, "length");
	constexpr uint64_t MOST = 1ull << 33;
	if (!begin || !length || !chunk_bytes_ || *begin > MOST || *length > MOST) {
		error_ = std::string(tag);
		return;
	}
	result_.mark(*begin * chunk_bytes_, (*begin + *length) * chunk_bytes_);
}

Result<ChangedBlocks> DeltaReader::finish()
{
	line(rest_);
	if (!error_.empty())
		return failed("what thin_delta says is not understood: " + error_);
	if (!whole_ || !chunk_bytes_)
		return failed("what thin_delta says is not whole");
	return std::move(result_);
}

// In a shell, so that the metadata snapshot is given back although the daemon dies meanwhile.
Result<ChangedBlocks> thin_changes(const ThinPair &pair, uint64_t size_bytes)
{
	static const char *const LIVE = R"(
		trap 'exit 1' TERM HUP INT PIPE
		dmsetup message "$1" 0 reserve_metadata_snap 2>/dev/null || {
			dmsetup message "$1" 0 release_metadata_snap
			dmsetup message "$1" 0 reserve_metadata_snap || exit 1
		}
		trap 'dmsetup message "$1" 0 release_metadata_snap' EXIT
		thin_delta --metadata-snap --thin1 "$3" --thin2 "$4" "$2"
	)";
	const std::string from = std::to_string(pair.from), to = std::to_string(pair.to);
	std::vector<std::string> argv = {"thin_delta", "--thin1", from, "--thin2", to, pair.metadata};
	if (!pair.pool.empty())
		argv = {"sh", "-c", LIVE, "thin_delta", pair.pool, pair.metadata, from, to};
	DeltaReader reader(size_bytes);
	auto output = run_command(argv, DIFF_TIMEOUT_MS, [&](std::string_view text) { reader.feed(text); });
	if (!output)
		return output.error();
	if (output->exit_status != 0)
		return failed(fmt::format("thin_delta failed on {}: {}", pair.metadata, output->err.substr(0, output->err.find('\n'))));
	return reader.finish();
}

std::string base64(const std::vector<uint8_t> &bytes)
{
	std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
	text.resize(size_t(EVP_EncodeBlock(reinterpret_cast<unsigned char *>(text.data()), bytes.data(), int(bytes.size()))));
	return text;
}

// ---- the question of another host ----

namespace {

// A snapshot's LV, or the volume's.
struct DiffSide {
	std::string lv, tag;
	uint64_t md_offset = 0, size_bytes = 0;
	bool is_snapshot = true;
};

struct DiffPlace {
	std::string vg, origin;    // origin: the volume's LV
	bool thin = true;
	DiffSide from, to;
};

DiffSide side_of(const Snapshot &s, const SnapshotCopy &copy, const std::string &vg)
{
	return {snapshot_lv_name({vg, true, s.vid, s.sid, s.attempt, s.uuid, 0}), snapshot_lv_tag(s.uuid), copy.md_offset, s.size_bytes};
}

// to: a snapshot, or 0 for the volume as it is.
Result<DiffPlace> diff_place(const State &state, HostId self, uint32_t from_sid, uint32_t to_sid)
{
	const Snapshot *from = state.snapshot(from_sid), *to = to_sid ? state.snapshot(to_sid) : nullptr;
	const SnapshotCopy *copy = from ? from->copy(self) : nullptr, *other = to ? to->copy(self) : nullptr;
	const Pool *pool = copy ? state.pool(copy->pool, self) : nullptr;
	if (!pool || (to_sid && (!other || other->pool != copy->pool || to->vid != from->vid)))
		return not_found("host " + state.host_name(self) + " has no copy of that snapshot any more");
	DiffPlace p;
	p.vg = pool->vg;
	p.origin = replica_lv_name(from->vid);
	p.thin = pool->kind == PoolKind::thin;
	p.from = side_of(*from, *copy, pool->vg);
	if (to) {
		p.to = side_of(*to, *other, pool->vg);
		return p;
	}
	const Volume *v = state.volume(from->vid);
	const Replica *r = v && v->phase == Phase::ready ? v->replica(self) : nullptr;
	if (!r || !r->clean() || r->pool != copy->pool)
		return not_found("host " + state.host_name(self) + " has no good replica of that volume any more");
	p.to = {p.origin, replica_lv_tag(v->uuid), r->md_offset, v->size_bytes, false};
	return p;
}

// The LV's number in its pool. LVM tells it of segments only, hence not in its report of volume groups.
Result<uint64_t> thin_id(const std::string &vg, const std::string &lv)
{
	const std::string what = fmt::format("cannot inspect logical volume {}/{}", vg, lv);
	auto out = run_lvm({"lvs", "--noheadings", "-o", "thin_id", vg + "/" + lv}, what);
	if (!out)
		return out.error();
	const size_t first = out->find_first_not_of(" \n"), end = out->find_last_not_of(" \n");
	uint64_t id = 0;
	if (first == out->npos || std::from_chars(out->data() + first, out->data() + end + 1, id).ptr != out->data() + end + 1)
		return failed(what + ": it has no number in a thin pool");
	return id;
}

Result<const LogicalVolume *> find_side(const LvmReport &report, const DiffPlace &p, const DiffSide &side)
{
	const LogicalVolume *lv = report.volume(p.vg, side.lv);
	if (!lv || !std::count(lv->tags.begin(), lv->tags.end(), side.tag))
		return not_found(fmt::format("logical volume {}/{} is not there", p.vg, side.lv));
	return lv;
}

Result<ThinPair> thin_pair(const Lvm &lvm, const DiffPlace &p)
{
	auto report = lvm.report(p.vg);
	if (!report)
		return report.error();
	auto found_from = find_side(*report, p, p.from), found_to = find_side(*report, p, p.to);
	if (!found_from || !found_to)
		return found_from ? found_to.error() : found_from.error();
	const LogicalVolume *from = *found_from, *to = *found_to;
	if (from->pool.empty() || from->pool != to->pool)
		return failed(fmt::format("logical volumes {} and {} are not in one thin pool", p.from.lv, p.to.lv));
	auto from_id = thin_id(p.vg, p.from.lv), to_id = thin_id(p.vg, p.to.lv);
	if (!from_id || !to_id)
		return from_id ? to_id.error() : from_id.error();
	return ThinPair{"/dev/mapper/" + dm_name(p.vg, from->pool + "_tmeta"), dm_name(p.vg, from->pool) + "-tpool", *from_id, *to_id};
}

// An extent that was never written reads as zeros, whatever stands there. That it was written is never forgotten by the kernel, but by a revert.
Done mark_extents(const DiffPlace &p, ChangedBlocks &changed)
{
	auto path = [&](const DiffSide &side) { return fmt::format("/dev/{}/{}", p.vg, side.lv); };
	auto from = written_extents(path(p.from), p.from.md_offset), to = written_extents(path(p.to), p.to.md_offset);
	if (!from || !to)
		return from ? to.error() : from.error();
	for (uint64_t e = 0; e < std::min(from->size(), to->size()); e++)
		if ((*from)[e] != (*to)[e])
			changed.mark(e * LKS_EXTENT_BYTES, (e + 1) * LKS_EXTENT_BYTES);
	return Nothing{};
}

// Wherever neither has anything of its own both read what the volume's LV holds. The lists are read one after the other: what is overwritten in
// between, of something that the first one does not name, the second one does.
Result<ChangedBlocks> thick_changes(const Lvm &lvm, const DiffPlace &p)
{
	auto report = lvm.report(p.vg);
	if (!report)
		return report.error();
	ChangedBlocks changed(p.to.size_bytes);
	changed.mark(std::min(p.from.size_bytes, p.to.size_bytes), p.to.size_bytes);
	for (const DiffSide &side : {p.from, p.to}) {
		auto found = find_side(*report, p, side);
		if (!found)
			return found.error();
		if (!side.is_snapshot)
			continue;
		const LogicalVolume *origin = report->volume(p.vg, (*found)->origin);
		if (!origin || origin->name != p.origin)
			return failed(fmt::format("logical volume {}/{} is no snapshot of {}", p.vg, side.lv, p.origin));
		const std::string name = dm_name(p.vg, side.lv);
		if (Done done = mark_own_chunks({"/dev/mapper/" + name + "-cow", name, origin->size_bytes}, changed); !done)
			return done.error();
	}
	if (Done done = mark_extents(p, changed); !done)
		return done.error();
	return changed;
}

// The ids are looked up again: one that was deleted meanwhile might have been given out anew.
Result<ChangedBlocks> changed_between(const Lvm &lvm, const DiffPlace &p)
{
	if (!p.thin)
		return thick_changes(lvm, p);
	auto before = thin_pair(lvm, p);
	if (!before)
		return before.error();
	auto changed = thin_changes(*before, p.to.size_bytes);
	if (!changed)
		return changed.error();
	auto after = thin_pair(lvm, p);
	if (!after)
		return after.error();
	if (after->from != before->from || after->to != before->to)
		return failed("the logical volumes were replaced meanwhile: repeat the command");
	return changed;
}

Result<nlohmann::json> diff_of(const Lvm &lvm, const DiffPlace &p)
{
	auto changed = changed_between(lvm, p);
	if (!changed)
		return changed.error();
	return nlohmann::json{{"block_bytes", DIFF_BLOCK_BYTES}, {"blocks", changed->blocks}, {"changed_blocks", changed->changed},
			      {"bitmap", base64(changed->bitmap)}};
}

}    // namespace

// ---- copies of snapshots for other hosts (snapshot_copy.h) ----

namespace {

struct SourcePlace {
	SnapshotLv lv;
	CopySource source;
	std::optional<DiffPlace> diff;    // from the base that was named
};

// Only of a copy that counts, and nothing of it ever changes, so this host's own state is new enough.
Result<SourcePlace> source_place(const State &state, HostId self, uint32_t sid, uint32_t base)
{
	const Snapshot *s = state.snapshot(sid);
	const SnapshotCopy *copy = s && s->phase == SnapshotPhase::ready ? s->copy(self) : nullptr;
	const Pool *pool = copy ? state.pool(copy->pool, self) : nullptr;
	if (!pool)
		return not_found("host " + state.host_name(self) + " has no whole copy of that snapshot");
	SourcePlace p;
	p.lv = {pool->vg, pool->kind == PoolKind::thin, s->vid, s->sid, s->attempt, s->uuid, 0};
	p.source = {snapshot_lv_path(p.lv), copy->md_offset, s->size_bytes, s->block_size};
	if (const Snapshot *b = state.snapshot(base); base && b && b->phase == SnapshotPhase::ready && std::max(s->size_bytes, b->size_bytes) <= DIFF_MAX_BYTES)
		if (auto diff = diff_place(state, self, base, sid); diff && diff->thin)
			p.diff = *diff;
	return p;
}

Done show_source(const Lvm &lvm, const SnapshotLv &lv)
{
	struct stat node;
	if (stat(snapshot_lv_path(lv).c_str(), &node) == 0)
		return Nothing{};
	return lvm.show({lv.vg, snapshot_lv_name(lv), snapshot_lv_tag(lv.uuid)});
}

Result<nlohmann::json> map_of(const Lvm &lvm, const SourcePlace &p)
{
	if (Done shown = show_source(lvm, p.lv); !shown)
		return shown.error();
	auto changed = p.diff ? changed_between(lvm, *p.diff) : Result<ChangedBlocks>(not_found("not asked"));
	if (changed)
		return nlohmann::json{{"changed", nlohmann::json::binary(std::move(changed->bitmap))}};
	return source_map(p.source);    // more is compared, nothing is missed
}

}    // namespace

void Daemon::serve_copies()
{
	auto serve = [this](const char *verb, std::function<Result<Json>(const Lvm &, const SourcePlace &, const Json &)> answer_of) {
		links_.on_call(verb, [this, answer_of](int, Json body, Links::Reply reply) {
			if (!member_)
				return reply(failed("not ready"));
			const uint32_t sid = body.at("sid").get<uint32_t>();
			auto place = source_place(state_, member_->host_id, sid, body.value("base", 0u));
			if (!place)
				return reply(place.error());
			auto answer = std::make_shared<Result<Json>>(Json());
			auto work = [answer, answer_of, lvm = lvm_, place = *place, body = std::move(body)] {
				try {
					*answer = answer_of(lvm, place, body);
				} catch (const Json::exception &) {
					*answer = usage_error("malformed request");
				}
			};
			// thin_delta takes one question of a pool at a time.
			workers_->submit(place->diff ? "diff:" + place->lv.vg : fmt::format("copy-of:{}", sid), std::move(work), [answer, reply] { reply(std::move(*answer)); });
		});
	};
	serve("snapshot.map", [](const Lvm &lvm, const SourcePlace &p, const Json &) { return map_of(lvm, p); });
	serve("snapshot.blocks", [](const Lvm &lvm, const SourcePlace &p, const Json &body) -> Result<Json> {
		if (Done shown = show_source(lvm, p.lv); !shown)
			return shown.error();
		return source_blocks(p.source, body);
	});
	serve("snapshot.end", [](const Lvm &lvm, const SourcePlace &p, const Json &) -> Result<Json> {
		if (Done done = lvm.end_copy(p.lv, 0); !done)
			return done.error();
		return Json::object();
	});
}

// Called on worker threads. The loop may end meanwhile, and then nobody answers: hence it looks itself whether to go on.
Result<nlohmann::json> Daemon::ask_of_worker(HostId host, const std::string &verb, Json body, uint64_t timeout_ms, const std::atomic<bool> &stop)
{
	auto promise = std::make_shared<std::promise<Result<Json>>>();
	auto future = promise->get_future();
	if (stop)
		return failed("called off");
	loop_.post([this, host, verb, body = std::move(body), timeout_ms, promise]() mutable {
		links_.call(host, verb, std::move(body), timeout_ms, [promise](Result<Json> answer) { promise->set_value(std::move(answer)); });
	});
	while (future.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready)
		if (stop)
			return failed("called off");
	return future.get();
}

void Daemon::serve_diff()
{
	links_.on_call("volume.diff", [this](int, Json body, Links::Reply reply) {
		if (!log_)
			return reply(failed("not ready"));
		const uint32_t from = body.at("from").get<uint32_t>(), to = body.at("to").get<uint32_t>();
		log_->barrier([this, from, to, reply = std::move(reply)](Done reached) {
			if (!reached)
				return reply(reached.error());
			auto place = diff_place(state_, member_->host_id, from, to);
			if (!place)
				return reply(place.error());
			auto answer = std::make_shared<Result<Json>>(Json());
			// Not the volume group's own key: a snapshot that is being taken must not wait for this.
			workers_->submit(
				"diff:" + place->vg, [answer, lvm = lvm_, place = *place] { *answer = diff_of(lvm, place); },
				[answer, reply] { reply(std::move(*answer)); });
		});
	});
}

}    // namespace lockstep
