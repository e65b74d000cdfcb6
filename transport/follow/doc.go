// Package follow is the reader's side of a feed in Go, over any of the three
// transports: WebSocket, Server-Sent Events and long poll.
//
// # Three floors
//
// [Dial] makes one connection and hands out its frames as they come. [Follow] is
// for whoever wants to stay: it connects again with a cursor for each collection,
// waits between tries, notices a connection that has gone silent, and hands out
// steps: a transaction, a reset, the moment it is live. [Rows] folds the frames of
// either into rows.
//
// # What is promised
//
// Follow hands out every change that the feed sends, in its order, a transaction
// in one step. Where a connection is lost in the middle of a transaction, its
// first half is thrown away and comes again. The [Cursors] of a step are where
// another Follow goes on without a gap, in another process or over another
// transport. What was handed out may come again after that; Rows skips it.
//
// Not promised: that every change which was written is seen. A feed leaves out
// what a newer change of the same row has overtaken.
//
// # Bounds
//
// A line, an event and a line of a WebSocket message may have
// [Options.MaxLine] bytes, a transaction four times as many; beyond, it is
// [ErrTooLarge]. The length of a message or of a poll's answer has no bound,
// because neither is ever held as a whole.
//
// # Goroutines
//
// The package starts none of its own. Those of net/http's connections end soon
// after Close, and after Follow has returned, unless the caller brought an
// http.Client that keeps its connections.
package follow
