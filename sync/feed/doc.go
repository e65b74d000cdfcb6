// Package feed says what a feed is: its words, its promises, the frames that
// carry it and the form in which a log keeps it. It knows no transport, no
// broker and no clock, and imports the standard library only (and package fault).
//
// # The promises
//
// A log is one ordered list of changes under one epoch. Each change has a
// sequence, a positive integer that grows and may skip. A feed is the changes of
// some collections of one tenant, as one client follows them from a cursor.
//
//  1. Changes come in sequence order.
//  2. From cursor C a client gets, for every key whose last change is after C,
//     that last change. Changes in between may be left out, so insert and modify
//     both mean "put", and remove means "delete if there".
//  3. A change may come twice; one that is not newer than what is held is skipped.
//  4. Where (2) can't be kept, the feed says reset and sends every row anew.
//  5. The changes of a transaction become visible together: each but the last
//     that the feed carries bears more, and no cursor stands between them.
//  6. Nothing is shown that a crash can take back.
//
// Less formally: a client that remembers one cursor and applies what it is sent
// ends up with exactly the rows that the server has, however often it was away.
//
// Not promised: that every state in between is seen, that sequences are
// neighbours, or that the rows which a client holds before it is live form a
// state that the server ever had.
package feed
