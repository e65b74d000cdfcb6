// Package oracle decides whether a server kept its word.
//
// A [History] is all that a server was asked, said and showed while somebody broke it:
// each write with its attempts and answers, each connection of each follower with its
// frames, each start, and the rows at the end. [Check] reads a history once, after the
// fact, and returns what can't be true of an honest server, each with the rule that it
// breaks and the evidence.
//
// # How it decides
//
// Answers and frames say which change has which sequence. Those of one epoch, sorted,
// are the model: for each sequence the rows that the server had. A follower that is
// live at a cursor must hold exactly those rows. So a change that nobody got is
// missed, and so is one that came back.
//
// The oracle knows nothing of the server but its protocol, and shares no code with it.
//
// # The rules
//
//	order        sequences only grow on a connection, but for a reset
//	doubled      nothing comes twice on a connection, or at or below the cursor that it was asked with
//	gap          a follower lacks a change before its cursor
//	lost         an acknowledged write is gone, where no fault allowed it or not as a suffix
//	part         a transaction is visible in part
//	undeleted    a row that was removed is there
//	stranger     something is there that nobody wrote, or nobody could have
//	effect       a change took effect twice, or after it was refused
//	answer       a repetition was answered in another way than the first time
//	refusal      a change was refused without a reason, or shown a row that was not there
//	decision     a change was taken that had to be refused, or its row is not what it asked for
//	function     one sequence of one epoch means two things
//	back         a sequence went back within an epoch
//	live         a feed called itself live and lacked what had been acknowledged
//	reset        a reset without a reason, or a reason without a reset
//	epoch        an epoch that no fault allows, or that should be over
//	early        a row went before its time to live was over
//	late         a row stayed long after its time to live was over
//	converge     a follower did not come to the final rows
//	start        the server did not start as it had to
//	unanswered   a write was never answered
//	history      the history lacks a change without a word, or has one that was not
//	scrub        damage to a file that is open was missed, or not mended
package oracle
