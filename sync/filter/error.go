package filter

import (
	"fmt"
	"strings"
)

// Error says why an expression, or claims, can't be a filter. It may be shown to whoever
// holds the token: it holds words of the expression, and no value of a claim.
type Error struct {
	Line, Column int // where, from 1 on, in characters; 0 where it is not one place
	Text         string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return "row filter: " + e.Text
	}
	return fmt.Sprintf("row filter, line %d, column %d: %s", e.Line, e.Column, e.Text)
}

// maxText is how many bytes of a reason are kept: they may quote the expression.
const maxText = 300

func refuse(line, column int, format string, args ...any) *Error {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return &Error{line, column, text}
}
