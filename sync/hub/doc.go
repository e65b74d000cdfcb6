// Package hub brings many sessions to the rows of one log.
//
// The log is the truth and the state is a fold of it: one goroutine, the writer,
// decides requests in order, appends them to the log in groups and applies each
// group once it is durable; a restart applies the same groups. A session is a
// cursor into that shared state plus a wake-up that means "look again", never a
// queue: whoever is slow, or was away, reads from further back and gets each row
// once, in its newest state.
//
// hub has heard of neither HTTP nor NATS.
package hub
