// Package broker is the ordered log on disk: feed.Log on a NATS JetStream server
// that runs inside this process, listens nowhere and serves nobody else.
//
// # What it keeps
//
// A store is a directory of one log:
//
//	LOCK            held (flock) while the store is open: one process at a time
//	tidemark.json   the marker: format, epoch, when it was made, whether it is relaxed and open
//	high-water      the newest group that was acknowledged, two slots of 32 bytes
//	nats/           JetStream's own files: the streams LOG and CHECKPOINT
//	history/        what was trimmed, where it is kept; see broker/history
//	aside/          what was damaged, and replaced or mended; nobody reads it but Inspect
//	new/            a log that is about to replace this one
//	probe           written and removed to see whether a disk that failed takes bytes again
//
// One group is one message of LOG, one fsync, and one position: position p is the
// stream's sequence p+1. Sequence 1 is the genesis message, which bears the epoch, so
// that a stream that was emptied can't be taken for one that is new. A
// checkpoint is a run of messages of CHECKPOINT, the last of which, the commit, makes
// it one; there is no checkpoint without its commit.
//
// A group goes to the stream's store directly (groups.go); all else goes through a
// connection to the server, which is a pipe in memory.
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
// JetStream by itself skips records that it can't read, or cuts its last file at the
// first of them and uses their numbers again, without an error. So the broker checks.
//
// Before the server touches the files: what says that the streams are there; each record
// in them, its hash, its lengths, its number. A harmed record is damage, also the last
// one, unless it looks like a write that a crash cut short. (This rests on the file format
// of nats-server 2.15, which verify.go describes; the tests flip bits in every file to
// keep it so.) That the log reaches up to the high-water mark and has there the group
// that was acknowledged. Then, that it reaches up to the newest checkpoint, and back to
// the genesis message or to the checkpoint; that streams, genesis message, checkpoint and
// mark are of the marker's epoch; that the streams are configured as Open makes them. In
// Read, that no position is left out; in LoadCheckpoint, that the parts are those that
// were committed. What a group says inside (its checksum, its chain) is for whoever
// decodes it. While the log is open, Scrub reads all of it again, from the disk, slowly. What
// it finds is mended by Rewrite, from what the caller has in memory, and never by the
// server, which drops more than is harmed, or asks for all memory, when it reads that.
//
// The high-water mark is written before an append is acknowledged, and synced beside the
// appends that follow, at most 10 ms and one sync later: a mark of its own that is synced
// first would double what a write costs. It is exact after a clean stop, and after the
// process was killed. After a power cut it may lack what was acknowledged in those last
// milliseconds. Three things are not noticed:
//
//   - A power cut, and the disk lost groups of those milliseconds that it said were
//     durable, and cut the file exactly between two records, or removed the newest files
//     whole.
//   - A power cut, and the last record, of those milliseconds, is harmed so that it looks
//     cut short: a sector of it is zeros, or the file ends within it.
//   - The whole directory is replaced by an older copy of itself.
//
// # Relaxed
//
// A relaxed log acknowledges what the system holds in memory, and syncs once a second. Its
// marker says so while it is open. One that was not closed is never opened again: what
// is there is read by Inspect, up to the first group that is missing, and made into a new
// log, with another epoch, by Replace. Checkpoints of it are durable before what they
// stand for is trimmed.
//
// # A disk that is full, or fails
//
// Below a reserve of free space nothing is written. A write that fails nonetheless stops
// the NATS server for good; disk.go says how the log gets over that by itself.
//
// # Concurrency
//
// As feed.Log says, and Close at any time. Append, Trim and SaveCheckpoint may run
// beside each other and beside reads. Nothing here holds a lock while it waits for
// the server.
package broker
