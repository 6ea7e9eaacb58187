# SPDX-License-Identifier: GPL-2.0-or-later
#
# Storage migration of a running VM into an SR of type lockstep.
#
# xapi makes two VDIs here. Into the first, the leaf, the tapdisk at the source writes what its guest writes from now on; the second, the
# parent, gets a copy of all that was there before. When the guest stands still, compose(parent, leaf) must make of the leaf: the parent,
# and on it exactly the sectors that were written to the leaf. A volume is raw and does not know them. So the kernel of the host that
# writes to the leaf keeps a trail from before the first write (`lockstep volume overlay --help`). Compose writes what it names onto the
# parent, then the leaf gets the parent's content as a whole. In thin pools that copies nothing: what compose takes grows with what was
# written during the migration, not with the disk. In thick ones it copies all that either of the two has been written to.
#
# Before it opens the leaf xapi takes a snapshot of it, which nobody ever reads. In a thick pool one of an empty disk would cost its room and
# slow down all that is written to the leaf: there an empty volume of its own stands for it.
#
# A trail is lost with its host, its module or a failed write, and then nothing is guessed: compose, or already the next activate, refuses,
# xapi gives the migration up, and the VM goes on at its source. Each step leaves a label, so that a repeated call goes on from there:
#
#   leaf    ID      the migration's name, from xapi; of both volumes
#           TRAIL   '' once xapi has taken its snapshot of the leaf (nothing else tells the two apart), 'host/number' once it is opened
#           DONE    the parent's name: composed. ID and TRAIL are gone, the leaf is a disk like others
#   parent  LAID    the leaf's name: the sectors are on the parent. From now on the trail is not needed
import lockstepapi as lockstep
import util

ID, TRAIL, LAID, DONE = 'xapi.mirror', 'xapi.mirror-trail', 'xapi.mirror-laid', 'xapi.mirror-done'
SOURCE_GOES_ON = 'the migration ends here, the VM goes on at its source: migrate it again'


class Lost(lockstep.ApiError):
    """The migration cannot be brought to its end."""

    def __init__(self, name, why):
        lockstep.ApiError.__init__(self, 'VDI %s cannot be made of what was copied and what was written meanwhile: %s; %s' % (name, why, SOURCE_GOES_ON))


def leaf_hosts(api, group, mirror):
    """Hosts with a copy of the leaf of this migration; none if there is no leaf yet. An earlier try may have left one: the last counts."""
    leaves = [v for v in api.status()['volumes']
              if v.get('group') == group and v['labels'].get(ID) == mirror and TRAIL in v['labels'] and v['phase'] == 'ready']
    return [r['host'] for r in max(leaves, key=lambda v: v['vid'])['replicas']] if leaves else []


def refuse_apart(api, group, mirror, hosts):
    """The leaf can get the content of what has a copy on one of its own hosts."""
    have = leaf_hosts(api, group, mirror)
    if have and not set(have) & set(hosts):
        raise lockstep.Forbidden('the disk that the migration begins with has its copies on %s, what it could be made of on %s: move a copy with '
                                 '`lockstep replica move`, or remove the snapshots of the VM at its source first'
                                 % (', '.join(have), ', '.join(sorted(hosts))), lockstep.FORBIDDEN)


def snapshotted(api, volume):
    """Before a snapshot of a volume: of a migration's two it is the leaf. True if this snapshot is the one that xapi takes of it then."""
    first = ID in volume['labels'] and TRAIL not in volume['labels']
    if first:
        api.volume_label(volume['name'], {TRAIL: ''})
    return first


def opened(api, volume, this_host):
    """Before the volume is opened for writing on this host."""
    name, trail = volume['name'], volume['labels'].get(TRAIL)
    if trail is None:
        return
    if trail:
        host, number = trail.split('/')
        if host != this_host:
            raise lockstep.InUse('VDI %s is written to by a storage migration, on host %s' % (name, host), lockstep.FORBIDDEN)
        try:
            api.trail(name, host, number, volume['size_bytes'])
        except lockstep.Forbidden as e:
            raise Lost(name, str(e))
        return
    began = api.trail_begin(name)
    api.volume_label(name, {TRAIL: '%s/%s' % (began['host'], began['trail'])})


def overlay(leaf, parent, trail):
    host, number = trail.split('/')
    write(leaf, 'volume', 'overlay', leaf, parent, '--host', host, '--trail', number)


def write(leaf, *command):
    status, printed, error = lockstep.run_command(*command)
    if status:
        raise Lost(leaf, error or printed.strip())


def end_trail(api, leaf, trail):
    """A kernel keeps it as long as the volume, and later migrations need its memory. Where that host cannot be asked it stays."""
    try:
        api.trail_end(leaf, *trail.split('/'))
    except lockstep.ApiError as e:
        util.SMlog('lockstep: the trail of volume %s stays: %s' % (leaf, e))


def compose(api, leaf, parent, thin):
    """Answers whether the parent is there still. See the top."""
    volume = api.volume(leaf)
    labels = volume['labels']
    try:
        base = api.volume(parent)
    except lockstep.Missing:
        base = None
    if labels.get(DONE) == parent:
        return base is not None
    if ID not in labels:
        raise lockstep.Forbidden('VDI %s is not what a storage migration writes to' % leaf, lockstep.FORBIDDEN)
    if not base:
        raise lockstep.Missing('there is no volume named ' + parent, lockstep.NOT_FOUND)
    if base['labels'].get(LAID) != leaf:
        if '/' not in labels.get(TRAIL, ''):
            raise Lost(leaf, 'it was not opened for writing as a migration does')
        overlay(leaf, parent, labels[TRAIL])
        api.volume_label(parent, {LAID: leaf})
    if thin:
        api.replace(leaf, parent)
    else:
        write(leaf, 'volume', 'overlay', parent, leaf, '--all')
        end_trail(api, leaf, labels[TRAIL])
    api.volume_label(leaf, {ID: None, TRAIL: None, DONE: parent})
    return True


def is_composed_parent(api, volume):
    """What a compose that was killed behind its last step has left."""
    leaf = volume['labels'].get(LAID)
    if not leaf:
        return False
    try:
        return api.volume(leaf)['labels'].get(DONE) == volume['name']
    except lockstep.Missing:
        return False
