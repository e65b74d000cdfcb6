package follow

import "time"

// The parsers, for tests from outside.

type EventParser struct{ p eventParser }

func NewEventParser(most int) *EventParser { return &EventParser{eventParser{max: most}} }

func (p *EventParser) Feed(chunk []byte, emit func(Event)) error {
	return p.p.feed(chunk, func(e event) { emit(Event{e}) })
}

func (p *EventParser) Retry() time.Duration { return p.p.retry }

type Event struct{ e event }

func NewEvent(name, id, data string) Event { return Event{event{name, id, []byte(data)}} }

func (e Event) Fields() (name, id, data string) { return e.e.name, e.e.id, string(e.e.data) }

var (
	Members = members
	Decode  = decode
)
