// Package filter decides which rows somebody sees, by an expression that their credential
// carries: a row filter.
//
//	row.owner == claims.sub
//	claims.role == 'admin' || row.team in claims.teams
//	has(row.members) && row.members.exists(m, m.id == claims.sub)
//
// The language is CEL, https://cel.dev, with two variables: row, the row's value, and
// claims, the claims of the token. Both are JSON objects. There is the standard library and
// its macros has, all, exists, exists_one, map and filter; there is no clock, no chance and
// no call to anywhere else, so that a row is seen always or never.
//
// # What is seen
//
// A row is seen when the expression is true. It is not when it is false, nor when it has no
// answer: a field is missing, the types don't fit, the result is not a bool, the work is too
// much. A claim that the token lacks is such an error, at every row; Compile does not mind it.
//
// As anywhere in CEL, || and && are true or false when one of their sides settles it, though
// the other is an error, whichever comes first:
//
//	row.nope == 1 || true     // true: every row is seen
//	row.nope == 1 && false    // false
//	row.nope == 1 || false    // an error: not seen
//
// all and exists are && and || over a list, and do the same. A negation does not turn an
// error into true: !(row.nope == 1) is not seen. Null is a value and equal to itself: where
// both may be null, row.owner == claims.sub is true of two nulls.
//
// # Numbers
//
// A JSON integer is an int, or a uint from 2^63 on. A number with a fraction or an exponent
// is a double. Numbers of different types compare by what they are: 1 == 1.0.
//
// A double can't tell integers from 2^53 on apart, and two users by their numbers must not be
// one. So from there on, up to 2^64, a JSON number with a fraction or an exponent that is
// whole is read as the integer it says; and a literal of that size, like 9007199254740993.0,
// is refused. What double(x) loses is lost, so compare numbers as they are.
//
// A number that neither 64 bits nor a double can hold is equal to the same number, if both
// are integers, or to the same text; it is not equal to anything else, and has no order nor
// arithmetic: row.n < 5 is an error, and the row not seen.
//
// # What it may cost
//
// An expression has at most 2 KiB, nests at most some 60 deep, has at most 4 loops in each
// other or over each other's results, and looks for patterns only that are literals. It is
// refused when it can't stay below [Steps], or could build a value that holds the row, the
// claims or an item many times: map may give parts of each item, numbers and texts.
//
// An expression that loops, adds, matches or compares a lot is stopped after [Steps] steps,
// and the row not seen, whatever || says. That is enough for exists over 20,000 members with
// one comparison. Being stopped depends on nothing but the row either. Nearly every filter
// answers within some microseconds; the worst that somebody who signs tokens could think of
// takes some 100 ms of a row of 300 KB.
//
// Only the fields of a row that the expression names are decoded. Less formally: filters
// should name what they look at. row.owner is cheap in a row of any size; size(row), or a
// field whose name is computed, decodes all of it.
//
// The last 1,024 expressions are kept compiled, for all tokens.
//
// # What differs from CEL elsewhere
//
//   - Maps are gone over in the order of their names.
//   - A map literal may only be looked up in.
//   - Parts of timestamps are those in UTC: the functions take no time zone, as zones
//     change and are read from files.
//   - There are no protocol buffer messages.
//   - matches has an error for a text of more than 16 KiB.
package filter
