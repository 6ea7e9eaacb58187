// SPDX-License-Identifier: GPL-2.0-or-later
//
// What takes long in a cluster, as one list. There is no store of operations: each is what the State and the hosts' reports say is on
// its way, under a name made of what it is about, so that every host tells the same, a new leader knows them all, and none is left
// over from something that is done.
//
//   id                      what                                                        called off by
//   ----------------------  ----------------------------------------------------------  ---------------------------------
//   create:VOLUME           replicas and devices of a new, restored or reverted volume
//   delete:VOLUME           hosts still have something of it
//   resize:VOLUME           it grows
//   verify:VOLUME           its replicas are compared                                    verify --stop
//   sync:VOLUME@HOST        a replica is made or resynced
//   move:VOLUME@HOST        the replica there goes when the one in its place is in sync   the old one stays, the new one goes
//   leave:VOLUME@HOST       the replica there goes when enough others are in sync         it stays
//   purge:VOLUME@HOST       a former replica is still to be removed there
//   snapshot:VOLUME/NAME    it is being taken or removed
//   evacuate:HOST           its replicas go to other hosts                              host restore
//   remove:HOST             it leaves the cluster                                       host restore
//   redundancy:GROUP        its volumes get another number of replicas                  the number before
//   disk:HOST:/dev/DISK     what is on it is moved to other disks of its pool
#pragma once

#include "lockstepd/api/reports.h"
#include "lockstepd/cluster/state.h"

#include <nlohmann/json.hpp>

#include <string>

namespace lockstep {

// [{id, kind, volume (or null), host (or null), what: one line, percent (or null), eta_s (or null), waits_for: one line or "", can_cancel}],
// by id. Pure.
nlohmann::json operations_json(const State &state, const Reports &soft);

// Of one that is not in the list: whether what it was to reach is there. False also for what never was.
bool operation_is_done(const State &state, const Reports &soft, const std::string &id);

}    // namespace lockstep
