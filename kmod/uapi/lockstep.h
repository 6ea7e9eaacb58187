/* SPDX-License-Identifier: GPL-2.0-or-later WITH Linux-syscall-note */
/*
 * The contract between lockstep.ko and lockstepd: generic netlink family "lockstep", version 1. C and C++.
 *
 * The daemon tells the kernel what the cluster has decided (the record of a volume), hands it connected sockets and
 * backing devices, and asks what is going on. The kernel decides nothing about membership: where a rule needs a new
 * version of the record it asks for one by an event (PROPOSE) and waits for CONFIG_SET.
 *
 * Who may: every command needs CAP_NET_ADMIN in the initial user namespace, and the initial network namespace.
 * Every command is idempotent: repeating one that has been carried out changes nothing and succeeds. Errors come as the
 * netlink error code and, for a human, as an extended ack message.
 *
 *  command         attributes (o: optional)                          meaning and errors
 *  --------------  ------------------------------------------------  --------------------------------------------------
 *  HOST_SET        HOST                                              this host's id; once. EBUSY if another one is set
 *  PEER_SET        HOST                                              this peer may be sent to and lanes for it be added
 *  PEER_DEL        HOST                                              close its lanes, forget it
 *  LANE_ADD        HOST LANE LANES LINK FD                           hand over a connected stream socket: lane LANE of
 *                                                                    LANES to HOST. All lanes of a link carry the same
 *                                                                    LINK number, chosen by the daemons to be larger
 *                                                                    than any before; a lane of a newer link ends the
 *                                                                    older one (its loss is handled first). The link is
 *                                                                    up when all its lanes are there. ESTALE: older link.
 *                                                                    ENOENT: no such peer. The daemon may close FD after.
 *  VOLUME_ADD      VID UUID NAME MINOR SIZE BLOCK_SIZE CLASS         EEXIST: same VID, other properties
 *  VOLUME_DEL      VID                                               EBUSY: the device is open, or a replica is attached
 *  REPLICA_ATTACH  VID PATH OFFSET THIN(o)                           open the backing device, read the metadata behind
 *                                                                    the data at byte OFFSET. Answer: SUSPECT DISK_VERSION
 *                                                                    DISK_TERM. The replica takes part in nothing until
 *                                                                    CONFIG_SET with ADMIT. EUCLEAN: metadata damaged or
 *                                                                    of another volume or host. ENXIO: no such device.
 *                                                                    EFBIG: the device is smaller than data + metadata
 *  REPLICA_DETACH  VID                                               drain, cool, flush, close. As primary: stop serving
 *                                                                    first. Never waits for a peer
 *  CONFIG_SET      VID RECORD ADMIT(o)                               what the log says. Versions below the known one are
 *                                                                    ignored. ADMIT (rule S3): this record was read from
 *                                                                    the log by a barrier after REPLICA_ATTACH, and if
 *                                                                    the replica was suspect it says so
 *  OPEN_REFUSE     VID ERROR                                         answer to EV_OPEN: whoever waits in open() gets ERROR
 *                                                                    (a negative errno; -EBUSY: another host holds it)
 *  HANDOVER        VID HOST                                          planned handover (M1): the primary here stops serving,
 *                                                                    drains, and asks by EV_PROPOSE for a term of HOST.
 *                                                                    ESTALE: it does not serve. EINVAL: HOST is not in
 *                                                                    sync. Done or given up with the next version (M2)
 *  QUIESCE         VID HOLD TIMEOUT_MS                               the primary here holds new writes back and drains;
 *                                                                    EV_QUIESCED when all members hold the same. Ends by
 *                                                                    itself after TIMEOUT_MS, or when the primary changes.
 *                                                                    Again with the same HOLD: renews it. ESTALE: it does
 *                                                                    not serve, or a HOLD with this number or a higher one
 *                                                                    has ended. EBUSY: another HOLD
 *  RESUME          VID HOLD                                          ends it. ESTALE: it had ended before, so that what was
 *                                                                    done meanwhile is worth nothing
 *  META_MOVE       VID OFFSET SIZE                                   grow, 1: write the replica's metadata a second time at
 *                                                                    OFFSET, for a volume of up to SIZE bytes, and keep
 *                                                                    both current; EV_META_MOVED when the second one is
 *                                                                    complete. OFFSET is not below SIZE nor below the end
 *                                                                    of the present metadata (EINVAL). EFBIG: the device
 *                                                                    is too small. EBUSY: another move. OFFSET 0: give up
 *  META_MOVED      VID OFFSET                                        grow, 2: the log names OFFSET: only that one counts now;
 *                                                                    what stood behind the data becomes zeros, then
 *                                                                    EV_META_MOVED with DONE. EINVAL: no such move
 *  RESIZE          VID SIZE                                          grow, 3: the device has SIZE bytes. The record names
 *                                                                    that size already, which it may once all replicas
 *                                                                    have moved (DONE). EINVAL: smaller, or not moved
 *  VERIFY          VID MODE REPAIR(o) VERIFY_DONE(o)                 primary here: MODE 1 starts comparing all members'
 *                  VERIFY_DIFFER(o)                                  blocks with its own, 0 stops; REPAIR rewrites what
 *                                                                    differs with the primary's content. VERIFY_DONE,
 *                                                                    _DIFFER: from an earlier primary's. ESTALE as above
 *  VOLUME_TUNE     VID FREEZE_MS(o) SYNC_RATE(o) SYNC_FLOOR(o)       requests that wait longer for a primary fail with EIO
 *                  SYNC_TARGET_MS(o)                                 (0, the default: never); how fast resync goes:
 *                                                                    ceiling, floor, and how long applications' requests
 *                                                                    may take before it slows down
 *  ABORT           VID                                               all requests that wait for a primary fail with EIO now,
 *                                                                    and whoever waits in open() too; and what comes from
 *                                                                    those who have the device open, until it is closed by all
 *                                                                    or opened for writing
 *  TRAIL_BEGIN     VID                                               remember from now on which sectors are written, zeroed
 *                                                                    or discarded through the device here. Answer: TRAIL, its
 *                                                                    number; the same as before while it is empty. It is gone
 *                                                                    with the volume, or by TRAIL_END. EBUSY: open for
 *                                                                    writing, or written to since one began
 *  TRAIL           VID TRAIL AT                                      the first extent at or behind byte AT with such sectors.
 *                                                                    Answer: AT and BITMAP, or neither: there is none.
 *                                                                    EBUSY: open for writing. ENODATA: no trail of this
 *                                                                    number, or something is missing from it, see the
 *                                                                    kernel's log (memory, a failed write, a take-over, lost
 *                                                                    caches)
 *  TRAIL_END       VID TRAIL                                         forget the trail of this number, if it is there
 *  DEVICE_ADD      VID                                               create the block device (fixed MINOR, name by udev)
 *  DEVICE_DEL      VID                                               EBUSY: open
 *  GET             VID(o)                                            dump: one VOLUME message a volume, one PEER message
 *                                                                    a peer (attributes below)
 *  TUNE            LEASE_MS(o) ...                                   module wide tunables; only before HOST_SET: LEASE_MS
 *
 * Multicast group "events". Each event carries SEQ (+1 an event): who sees a hole dumps again.
 *
 *  event           attributes                        meaning
 *  --------------  --------------------------------  ---------------------------------------------------------------
 *  EV_PROPOSE      VID RECORD                        the primary wants this record: commit it if the log's version is
 *                                                    RECORD.version - 1 (W3, C6, J3). Repeated until CONFIG_SET brings
 *                                                    a newer version. RECORD's replica states say who is a member
 *  EV_OPEN         VID MODE                          somebody waits in open(): commit an opener for this host
 *  EV_CLOSE        VID SESSION                       the last opener of SESSION has gone: it may leave the record
 *  EV_LINK_DOWN    HOST LINK REASON                  a link broke; the daemon dials again
 *  EV_SILENT       HOST                              rule L4: HOST did not answer; its link was closed
 *  EV_DISK_ERROR   VID OP ERROR                      the backing device failed; the replica stopped. Commit it failed,
 *                                                    and another primary if it was the primary
 *  EV_STATE        VID                               the volume's state changed: dump it
 *  EV_QUIESCED     VID HOLD                          nothing is in flight: all members hold the same
 *  EV_UNQUIESCED   VID HOLD                          the hold ended by itself
 *  EV_META_MOVED   VID OFFSET DONE(o)                see META_MOVE, META_MOVED
 *  EV_MISMATCH     VID HOST AT LENGTH REPAIR(o)      verify found LENGTH bytes AT byte that differ on HOST
 *  EV_VERIFIED     VID                               verify has ended; the dump has the figures
 */
#ifndef LOCKSTEP_UAPI_H
#define LOCKSTEP_UAPI_H

#include <linux/types.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Lockstep supports little-endian hosts only: its wire and disk formats are used in place"
#endif

#define LKS_GENL_NAME "lockstep"
#define LKS_GENL_VERSION 1
#define LKS_GENL_EVENTS "events"

#define LKS_MAX_HOSTS 64	/* host ids are 1..64; 0 means none */
#define LKS_MAX_REPLICAS 8	/* of one volume: this one and 7 dirty map slots */
#define LKS_MAX_LANES 8		/* of one link */
#define LKS_NAME_MAX 127	/* bytes of a volume's name without the NUL: [A-Za-z0-9][A-Za-z0-9._-]* */
#define LKS_MAX_MINORS 65536	/* minors are 0..65535 */
#define LKS_SECTOR 512		/* bytes; sizes and alignments of requests */
#define LKS_EXTENT_BYTES (4u << 20)
#define LKS_TRAIL_BITMAP 1024	/* bytes: an extent's */
#define LKS_BLOCK_DEFAULT 16384	/* bytes of a volume a dirty bit stands for; 4 KiB .. 1 MiB, a power of two */
#define LKS_BLOCK_MIN 4096
#define LKS_BLOCK_MAX (1u << 20)

enum lks_cmd {
	LKS_CMD_UNSPEC,
	LKS_CMD_HOST_SET,
	LKS_CMD_PEER_SET,
	LKS_CMD_PEER_DEL,
	LKS_CMD_LANE_ADD,
	LKS_CMD_VOLUME_ADD,
	LKS_CMD_VOLUME_DEL,
	LKS_CMD_REPLICA_ATTACH,
	LKS_CMD_REPLICA_DETACH,
	LKS_CMD_CONFIG_SET,
	LKS_CMD_DEVICE_ADD,
	LKS_CMD_DEVICE_DEL,
	LKS_CMD_GET,
	LKS_CMD_TUNE,
	LKS_CMD_OPEN_REFUSE,
	/* sent by the kernel only */
	LKS_CMD_VOLUME,		/* part of a dump */
	LKS_CMD_PEER,		/* part of a dump */
	LKS_CMD_EV_PROPOSE,
	LKS_CMD_EV_OPEN,
	LKS_CMD_EV_CLOSE,
	LKS_CMD_EV_LINK_DOWN,
	LKS_CMD_EV_SILENT,
	LKS_CMD_EV_DISK_ERROR,
	LKS_CMD_EV_STATE,
	/* by the daemon */
	LKS_CMD_HANDOVER,
	LKS_CMD_QUIESCE,
	LKS_CMD_RESUME,
	LKS_CMD_META_MOVE,
	LKS_CMD_META_MOVED,
	LKS_CMD_RESIZE,
	LKS_CMD_VERIFY,
	LKS_CMD_VOLUME_TUNE,
	LKS_CMD_ABORT,
	/* sent by the kernel only */
	LKS_CMD_EV_QUIESCED,
	LKS_CMD_EV_UNQUIESCED,
	LKS_CMD_EV_META_MOVED,
	LKS_CMD_EV_MISMATCH,
	LKS_CMD_EV_VERIFIED,
	/* by the daemon */
	LKS_CMD_TRAIL_BEGIN,
	LKS_CMD_TRAIL,
	LKS_CMD_TRAIL_END,
	LKS_CMD_COUNT,
};

enum lks_attr {
	LKS_A_UNSPEC,
	LKS_A_HOST,		/* u8: host id */
	LKS_A_LANE,		/* u8: 0 .. LANES-1; lane 0 carries control messages */
	LKS_A_LANES,		/* u8 */
	LKS_A_LINK,		/* u64 */
	LKS_A_FD,		/* u32: of the calling process */
	LKS_A_VID,		/* u32: the volume's serial number in the cluster, never used again */
	LKS_A_UUID,		/* binary, 16 bytes */
	LKS_A_NAME,		/* string */
	LKS_A_MINOR,		/* u32 */
	LKS_A_SIZE,		/* u64: bytes, a multiple of 4096 */
	LKS_A_BLOCK_SIZE,	/* u32: bytes */
	LKS_A_CLASS,		/* u8: enum lks_class */
	LKS_A_PATH,		/* string: the replica's logical volume */
	LKS_A_OFFSET,		/* u64: bytes from the start of PATH to its metadata */
	LKS_A_RECORD,		/* binary: struct lks_record */
	LKS_A_ADMIT,		/* flag */
	LKS_A_SUSPECT,		/* u8: 1 if extents were hot at attach (S1) */
	LKS_A_DISK_VERSION,	/* u64: from the superblock */
	LKS_A_DISK_TERM,	/* u64: from the superblock */
	LKS_A_MODE,		/* u8: enum lks_open_mode; VERIFY: 1 start, 0 stop */
	LKS_A_SESSION,		/* u64 */
	LKS_A_REASON,		/* string */
	LKS_A_OP,		/* string: what failed: "read", "write", "flush", "metadata" */
	LKS_A_ERROR,		/* s32: errno */
	LKS_A_SEQ,		/* u64: number of the event; in a dump: number of the last event sent before it */
	LKS_A_LEASE_MS,		/* u32: 1000 .. 60000, default 3000 */
	/* in a VOLUME message of a dump, beside VID UUID NAME MINOR SIZE BLOCK_SIZE CLASS: */
	LKS_A_HAS_DEVICE,	/* flag */
	LKS_A_OPENERS,		/* u32: open file descriptions of the device, read-only ones included */
	LKS_A_WRITERS,		/* u32: those that may write */
	LKS_A_OPEN_WAITERS,	/* u32: processes waiting in open(); +1 if a read waits for somebody to become primary */
	LKS_A_HAS_REPLICA,	/* flag; then also PATH, OFFSET, SUSPECT: */
	LKS_A_ADMITTED,		/* flag: ADMIT was given */
	LKS_A_FAILED,		/* flag: the backing device failed */
	LKS_A_ROLE,		/* u8: enum lks_role */
	LKS_A_VERSION,		/* u64: the version this replica has adopted (its session's), 0 if none */
	LKS_A_TERM,		/* u64 */
	/* in a dump absent while a REPLICA_ATTACH runs, as is ROLE and all else that only the core knows: */
	LKS_A_NOTED_VERSION,	/* u64: the newest version CONFIG_SET brought */
	LKS_A_SESSION_WITH,	/* u8: host id of the primary whose data this replica takes, 0 if none (T1) */
	LKS_A_PENDING,		/* u32: requests of local openers not completed */
	LKS_A_OLDEST_MS,	/* u32: age of the oldest of them; frozen if it grows */
	LKS_A_PEERS,		/* nested list of LKS_A_PEER, one a peer replica (only while primary or member) */
	LKS_A_PEER,		/* nested: HOST SYNC_STATE DIRTY_BLOCKS */
	LKS_A_SYNC_STATE,	/* u8: enum lks_sync_state */
	LKS_A_DIRTY_BLOCKS,	/* u64: blocks known to differ there */
	LKS_A_HOT_EXTENTS,	/* u32 */
	LKS_A_WRITTEN_EXTENTS,	/* u32 */
	/* in a PEER message: HOST LINK LANES and */
	LKS_A_UP,		/* flag: all lanes are there */
	LKS_A_PAD,
	LKS_A_THIN,		/* flag: PATH is thin: it reads zeros where it was never written or was discarded */
	LKS_A_SESSION_ENDED,	/* u64, in a VOLUME message: sessions up to this one were closed here (EV_CLOSE) */
	LKS_A_HOLD,		/* u64: number of a quiesce, chosen by the daemon, not 0. In a dump: the one that stands */
	LKS_A_TIMEOUT_MS,	/* u32: 1 .. 60000 */
	LKS_A_DONE,		/* flag */
	LKS_A_REPAIR,		/* flag */
	LKS_A_AT,		/* u64: byte of the volume */
	LKS_A_LENGTH,		/* u64: bytes */
	LKS_A_FREEZE_MS,	/* u32 */
	LKS_A_SYNC_RATE,	/* u32: KiB a second that resync of this volume may read at most, 0: no ceiling */
	/* in a VOLUME message of a dump, with HAS_REPLICA: */
	LKS_A_CAPACITY,		/* u64: bytes of volume that the replica's metadata can describe */
	LKS_A_MOVE_OFFSET,	/* u64: OFFSET of a META_MOVE that stands, else absent */
	LKS_A_MOVE_CURRENT,	/* flag: ... and both places are current */
	LKS_A_VERIFY_TOTAL,	/* u64: blocks to compare, 0: none was begun since the primary serves */
	LKS_A_VERIFY_DONE,	/* u64: blocks compared; the verify has ended when it equals the total */
	LKS_A_VERIFY_DIFFER,	/* u64: blocks that differed on some member */
	LKS_A_HANDOVER_TO,	/* u8: host id of a HANDOVER that stands */
	LKS_A_SYNC_FLOOR,	/* u32: KiB a second that resync of this volume may read at least, 0: 16 MiB */
	LKS_A_SYNC_TARGET_MS,	/* u32: reads and writes that take longer on average slow resync down to its floor, 0: 50 */
	LKS_A_FULL,		/* flag: the replica's pool has no room; what it did not take waits, and is tried again */
	LKS_A_TRAIL,		/* u64: number of a trail, not 0 */
	LKS_A_BITMAP,		/* binary, LKS_TRAIL_BITMAP: a bit a sector of 512 bytes, bit 0 of byte 0 is the first one's */
	LKS_A_STUCK,		/* flag, with HAS_REPLICA: the disk has something to do, and has answered nothing for long */
	LKS_A_COUNT,
};
#define LKS_A_MAX (LKS_A_COUNT - 1)

enum lks_class { LKS_EXCLUSIVE = 0, LKS_SHARED = 1 };

enum lks_open_mode { LKS_OPEN_WRITE = 1 };

enum lks_role {
	LKS_IDLE = 0,		/* a member, syncing, or nothing */
	LKS_ACTIVATING = 1,	/* named primary of a new term; not serving yet (R1, L1) */
	LKS_ACTIVE = 2,		/* serving */
	LKS_DRAINING = 3,	/* planned handover (M1) */
};

enum lks_sync_state {
	LKS_SYNC_MEMBER = 0,	/* in sync */
	LKS_SYNC_AWAY = 1,	/* not in sync and not talking to us */
	LKS_SYNC_RUNNING = 2,	/* being resynced */
	LKS_SYNC_JOINING = 3,	/* clean; its join is prepared or proposed */
	LKS_SYNC_LOST = 4,	/* a member whose link broke; a version without it is proposed (W3) */
};

enum lks_replica_state {
	LKS_REPLICA_NONE = 0,
	LKS_REPLICA_INSYNC = 1,
	LKS_REPLICA_SUSPECT = 2,	/* in sync, but restarted with hot extents (S1) */
	LKS_REPLICA_STALE = 3,		/* to be resynced */
	LKS_REPLICA_FAILED = 4,		/* its disk failed; takes part in nothing */
};

#define LKS_RECORD_DRAINED 0x01	/* no earlier primary has a promise: this term began with a planned handover (M1), or is the first */

/*
 * The record of truth of one volume, as the log holds it (DESIGN section 3). The same bytes go over netlink and over the
 * wire. Unused entries are zero. Invariants, checked by lks_record_check(): size is a multiple of 4096 up to 64 TiB;
 * replicas have distinct hosts 1..64; primary is
 * 0 or an in-sync or suspect replica; since <= version; sessions are distinct and <= session_serial.
 */
struct lks_record_replica {
	__u8 host;
	__u8 state;		/* enum lks_replica_state */
	__u8 pad[6];
	__u64 since;		/* version that last took it out of the in-sync set, or added it. Ties dirty maps to it */
	__u64 added;		/* version that added it: another number is another, empty replica */
};

struct lks_record_opener {
	__u8 host;
	__u8 pad[7];
	__u64 session;		/* 1 .. session_serial */
};

struct lks_record {
	__u64 version;
	__u64 term;
	__u64 incarnation;
	__u64 session_serial;	/* number of the last open session ever granted; a session not listed is fenced (O1) */
	__u64 size;		/* bytes of the volume, a multiple of 4096; never less than in a version before */
	__u32 vid;
	__u8 primary;		/* host id, 0: none */
	__u8 flags;		/* LKS_RECORD_* */
	__u8 nreplicas;
	__u8 nopeners;
	struct lks_record_replica replicas[LKS_MAX_REPLICAS];
	struct lks_record_opener openers[LKS_MAX_HOSTS];
};

#endif
