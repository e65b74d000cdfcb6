// Package broker is the ordered log on disk: feed.Log on a NATS JetStream server
// that runs inside this process, listens nowhere and serves nobody else.
//
// # What it keeps
//
// A store is a directory of one log:
//
//	LOCK            held (flock) while the store is open: one process at a time
//	tidemark.json   the marker: format, epoch, when it was made
//	high-water      the newest position that was acknowledged, two slots of 16 bytes
//	nats/           JetStream's own files: the streams LOG and CHECKPOINT
//
// One group is one message of LOG, one fsync, and one position: position p is the
// stream's sequence p+1. Sequence 1 is the genesis message, which bears the epoch, so
// that a stream that was emptied can't be taken for one that is new. A
// checkpoint is a run of messages of CHECKPOINT, the last of which, the commit, makes
// it one; there is no checkpoint without its commit.
//
// Both streams have limits retention and no limit, no age, no compression and one
// replica, and the server syncs each write before it acknowledges it. No name that a
// user chose becomes a subject.
//
// # What it promises
//
//  1. A group whose Append returned without error survives the process and, if the
//     disk keeps what it says that it synced, a power cut.
//  2. A group that is there is at one position for ever, and Append writes nothing
//     unless the log ends where its caller believes (the fence).
//  3. Open makes durable whatever it finds, before anybody can read it: nothing that
//     was read once is lost by a later crash.
//  4. What was acknowledged is there or is missed loudly, as a *feed.Damage.
//     A store that was there is never made anew.
//
// # What is noticed, and what is not
//
// JetStream drops records that it can't read, cuts its last block at the first bad
// one, and then uses the numbers again, without an error. So the
// broker checks: that each number between the first and the last has its message, at
// Open by count and in Read by number; that the log reaches up to the newest
// checkpoint and up to the high-water mark, and back to the genesis message
// or to the checkpoint; that the streams, the genesis message, the checkpoint
// and the mark are of the marker's epoch, and the streams configured as Open would; that
// parts and commit of a checkpoint match their checksums. What a group says inside
// (its checksum, its chain) is checked by whoever decodes it.
//
// The high-water mark is written after each acknowledgement but synced only with a
// checkpoint and by Close. It is exact after a clean stop and after the process was
// killed. After a power cut or a crash of the system it may be as old as the kernel's write-back
// (30 seconds on Linux by default) or the newest checkpoint, whichever is newer. If such a
// crash comes together with damage to the end of the log's last block file, groups between that mark and
// the damage can be cut off unnoticed. Neither alone loses anything silently. A
// whole store that is replaced by an older copy of itself is not noticed either.
//
// # Concurrency
//
// As feed.Log says, and Close at any time. Append, Trim and SaveCheckpoint may run
// beside each other and beside reads. Nothing here holds a lock while it waits for
// the server.
package broker
