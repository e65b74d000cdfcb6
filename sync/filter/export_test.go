package filter

import (
	"strings"

	"github.com/google/cel-go/common/types"
)

// SeesDecoded is Sees with all of the row decoded, whatever the expression names.
func (f *Filter) SeesDecoded(value string) bool { return f.sees(value, uses{whole: true}) }

// Ask is Sees that lets panics through, but for the one that stops what takes too long. It
// returns how many steps were taken, too.
func (f *Filter) Ask(value string) (seen bool, steps int) {
	var s scope
	out, err := f.ask(&s, value, f.program.row)
	if err != nil && strings.HasPrefix(err.Error(), "internal error") && !strings.HasSuffix(err.Error(), errSteps.Error()) {
		panic(err)
	}
	return err == nil && out == types.True, Steps - s.steps
}

// Fields returns the fields of a row that are decoded, and whether all are.
func (f *Filter) Fields() ([]string, bool) { return f.program.row.fields, f.program.row.whole }

// Limits of the programs that are kept.
const (
	MaxPrograms     = maxPrograms
	MaxProgramBytes = maxProgramBytes
)

// Programs returns how many are kept, and how long their texts are.
func Programs() (n, bytes int) {
	programs.mu.Lock()
	defer programs.mu.Unlock()
	return len(programs.all), programs.bytes
}

// SameProgram tells whether two filters share theirs.
func SameProgram(a, b *Filter) bool { return a.program == b.program }
