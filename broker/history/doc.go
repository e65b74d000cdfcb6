// Package history keeps what the log forgets: every change, uncompacted, with who and
// when, in files that are only ever appended to, but for what Forget takes out of them.
//
// # What it keeps
//
// A Store is a directory:
//
//	00000012-1042-17-1760000000123-1760000000123-k3f9a1.seg
//	        a segment: its number, and of its first group the sequence, the position, the
//	        time and the steady time (milliseconds), and the epoch
//	mark    which segments there are, and how far the newest one is durable
//	forgetting
//	        a segment that Forget writes anew; it takes the place of the old one whole
//
// A segment holds groups as the log had them, one after the other, about
// Options.SegmentBytes of them. When it is full it gets a footer: which collections and
// (by a Bloom filter) which keys it holds, where it ends, and a place to begin every
// 128 KiB. Segments are numbered without holes, and each bears in its header the
// group after which it was begun, so that a missing file is seen.
//
// A history spans epochs. Positions begin again with each, sequences go on.
//
// # What it promises
//
//  1. What Sync has returned for is there after a crash or is missed loudly, as a
//     *feed.HistoryDamage that names the sequences. What was added later may be gone:
//     the log must keep it until then.
//  2. Open and memory do not depend on how much is kept: Open lists the directory and
//     reads one segment, and 64 bytes a segment are held.
//  3. Nothing is skipped silently. Damage stops a Read that wants what is damaged, and no
//     other.
//  4. Groups that were never added, because nobody kept a history at the time or because
//     the log was reborn, are a hole, which Read tells of.
//
// What was forgotten is no hole and no damage: it is gone over as another tenant's is.
//
// Only whole segments are dropped, the oldest first and never the newest, so that Keep
// and Bytes are exceeded by at most about an eighth.
//
// # What is not noticed
//
// That the whole directory was replaced by an older copy, before groups are added
// again: from then on it is a hole.
//
// # Concurrency
//
// All methods may be called at any time. Those that write wait for each other; a Read
// waits for nobody and holds nobody up.
package history
