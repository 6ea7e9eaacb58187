// SPDX-License-Identifier: GPL-2.0-or-later
//
// The metadata of a replica seen from outside, without log, daemon or kernel: for `lockstep md`. Only reads. Everything blocks.
//
// Where the metadata begin stands in the log. Without it they are looked for from the end of the LV: the log's place is the
// last one, except while a volume grows.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>

#include "lib/error.h"

namespace lockstep {

// Bytes from the start of the LV (or a copy of it in a file) to its metadata. Searches only where metadata of an LV of that size
// can be.
Result<uint64_t> find_metadata(const std::string &path);

// {path, offset, ... as dump_replica(), incarnation, "copies": [{copy, valid, sequence}], "problems": [text], "notes": [text]}. Problems: what
// should never be. Notes: what a crash leaves and the next resync mends. An Error if nothing can be decoded.
Result<nlohmann::json> check_metadata(const std::string &path, uint64_t offset);

}    // namespace lockstep
