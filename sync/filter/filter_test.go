package filter_test

import (
	"testing"
)

const (
	yes = true
	no  = false
)

// look is a row that is looked at with an expression and claims.
type look struct {
	expr, claims, row string
	seen              bool
}

func check(t *testing.T, looks []look) {
	for _, l := range looks {
		if seen := sees(t, compile(t, l.expr, l.claims), l.row); seen != l.seen {
			t.Errorf("%s\n  of %s\n  for %s\n  is seen: %v, want %v", l.expr, l.row, l.claims, seen, l.seen)
		}
	}
}

func TestARowWhoseOwnerIsAnotherIsNotSeen(t *testing.T) {
	const ada = `{"sub":"ada","role":"member","teams":["red","blue"],"org":{"id":7,"name":"acme"}}`
	check(t, []look{
		{`row.owner == claims.sub`, ada, `{"owner":"ada"}`, yes},
		{`row.owner == claims.sub`, ada, `{"owner":"bob"}`, no},
		{`row.owner == claims.sub`, ada, `{"owner":"adam"}`, no},
		{`row.owner == claims.sub`, ada, `{"owner":"Ada"}`, no},
		{`row['owner'] == claims['sub']`, ada, `{"owner":"ada"}`, yes},
		{`row['owner'] == claims['sub']`, ada, `{"owner":"bob"}`, no},
		{`.row.owner == .claims.sub`, ada, `{"owner":"ada"}`, yes},
		{`row.owner == claims.sub`, ada, `{"o":"x","owner" : "ada" , "z":[1,{"owner":"bob"}]}`, yes},
		{`row.owner == claims.sub`, ada, `{"inner":{"owner":"ada"},"owner":"bob"}`, no},
		{`row.owner != claims.sub`, ada, `{"owner":"ada"}`, no},
		{`row.owner != claims.sub`, ada, `{"owner":"bob"}`, yes},
		{`claims.role == 'admin' || row.owner == claims.sub`, ada, `{"owner":"bob"}`, no},
		{`claims.role == 'admin' || row.owner == claims.sub`, `{"role":"admin"}`, `{"owner":"bob"}`, yes},
		{`row.team in claims.teams`, ada, `{"team":"blue"}`, yes},
		{`row.team in claims.teams`, ada, `{"team":"green"}`, no},
		{`claims.sub in row.readers`, ada, `{"readers":["bob","ada"]}`, yes},
		{`claims.sub in row.readers`, ada, `{"readers":[]}`, no},
		{`claims.sub in row.readers`, ada, `{"readers":{"ada":1}}`, yes},
		{`claims.sub in row.readers`, ada, `{"readers":"ada"}`, no},
		{`row.org.id == claims.org.id`, ada, `{"org":{"id":7}}`, yes},
		{`row.org.id == claims.org.id`, ada, `{"org":{"id":8}}`, no},
		{`row.org == claims.org`, ada, `{"org":{"name":"acme","id":7}}`, yes},
		{`row.org == claims.org`, ada, `{"org":{"name":"acme","id":7,"x":1}}`, no},
		{`row.org == claims.org`, ada, `{"org":{"name":"acme"}}`, no},
		{`row.state in ['open', 'late']`, ada, `{"state":"late"}`, yes},
		{`row.state in ['open', 'late']`, ada, `{"state":"done"}`, no},
		{`{'member': 2, 'guest': 1}[claims.role] >= row.level`, ada, `{"level":2}`, yes},
		{`{'member': 2, 'guest': 1}[claims.role] >= row.level`, ada, `{"level":3}`, no},
		{`{'admin': 9}[claims.role] >= row.level`, ada, `{"level":0}`, no},
		{`row.title.startsWith('a') && row.title.endsWith('z')`, ada, `{"title":"a to z"}`, yes},
		{`row.title.contains(claims.sub)`, ada, `{"title":"for ada"}`, yes},
		{`row.mail.matches('^[a-z]+@acme[.]com$')`, ada, `{"mail":"ada@acme.com"}`, yes},
		{`row.mail.matches('^[a-z]+@acme[.]com$')`, ada, `{"mail":"ada@acme.com.evil"}`, no},
		{`row.public`, ada, `{"public":true}`, yes},
		{`row.public`, ada, `{"public":false}`, no},
		{`!row.secret`, ada, `{"secret":false}`, yes},
		{`claims.role == 'member' ? row.open : true`, ada, `{"open":false}`, no},
		{`true`, ada, `{}`, yes},
		{`false`, ada, `{}`, no},
	})
}

func TestARowOfWhichNothingCanBeToldIsNotSeen(t *testing.T) {
	check(t, []look{
		// What is missing.
		{`row.owner == claims.sub`, `{"sub":"ada"}`, `{}`, no},
		{`row.owner == claims.sub`, `{}`, `{"owner":"ada"}`, no},
		{`row.owner == claims.sub`, `{}`, `{}`, no},
		{`row.owner != claims.sub`, `{}`, `{"owner":"ada"}`, no},
		{`!(row.owner == claims.sub)`, `{}`, `{"owner":"ada"}`, no},
		{`row.a.b == 1`, `{}`, `{"a":{}}`, no},
		{`row.a.b == 1`, `{}`, `{"a":5}`, no},
		{`row.a.b == 1`, `{}`, `{"a":null}`, no},
		{`row.a[3] == 1`, `{}`, `{"a":[1]}`, no},
		{`row.a[-1] == 1`, `{}`, `{"a":[1]}`, no},
		{`row[claims.f] == 1`, `{"f":"a"}`, `{"a":1}`, yes},
		{`row[claims.f] == 1`, `{"f":"b"}`, `{"a":1}`, no},
		// What is not a bool.
		{`row.public`, `{}`, `{"public":"true"}`, no},
		{`row.public`, `{}`, `{"public":1}`, no},
		{`row.public`, `{}`, `{"public":null}`, no},
		{`row.public`, `{}`, `{}`, no},
		{`row.public && true`, `{}`, `{"public":"true"}`, no},
		// What does not fit.
		{`row.n < 5`, `{}`, `{"n":"4"}`, no},
		{`row.n + 1 == 5`, `{}`, `{"n":"4"}`, no},
		{`row.n / row.d == 1`, `{}`, `{"n":1,"d":0}`, no},
		{`row.n + 1 > 0`, `{}`, `{"n":9223372036854775807}`, no},
		{`row.s.startsWith('a')`, `{}`, `{"s":1}`, no},
		{`row.s.matches('a')`, `{}`, `{"s":1}`, no},
		{`row.l.exists(x, x == 1)`, `{}`, `{"l":1}`, no},
		{`size(row.n) == 1`, `{}`, `{"n":1}`, no},
		{`timestamp(row.at) < timestamp('2030-01-01T00:00:00Z')`, `{}`, `{"at":"soon"}`, no},
		// Null is a value.
		{`row.owner == claims.sub`, `{"sub":"ada"}`, `{"owner":null}`, no},
		{`row.owner == claims.sub`, `{"sub":null}`, `{"owner":null}`, yes},
		{`row.owner == null`, `{}`, `{"owner":null}`, yes},
		{`row.owner == null`, `{}`, `{"owner":0}`, no},
		{`has(row.owner)`, `{}`, `{"owner":null}`, yes},
		// What is not an object is not a row.
		{`true`, `{}`, `[]`, no},
		{`true`, `{}`, `null`, no},
		{`true`, `{}`, ``, no},
		{`true`, `{}`, `{} {}`, no},
		{`true`, `{}`, `{"a":1`, no},
	})
}

func TestAnErrorIsAbsorbedOnlyAsCELSays(t *testing.T) {
	const bad = `row.nope == 1`
	check(t, []look{
		{bad + ` || true`, `{}`, `{}`, yes},
		{`true || ` + bad, `{}`, `{}`, yes},
		{bad + ` || false`, `{}`, `{}`, no},
		{`false || ` + bad, `{}`, `{}`, no},
		{bad + ` && true`, `{}`, `{}`, no},
		{`!(` + bad + ` && false)`, `{}`, `{}`, yes},
		{`!(` + bad + ` && true)`, `{}`, `{}`, no},
		{`true ? true : ` + bad, `{}`, `{}`, yes},
		{`false ? true : ` + bad, `{}`, `{}`, no},
		{bad + ` ? true : true`, `{}`, `{}`, no},
		{`row.l.exists(x, x.id == 1)`, `{}`, `{"l":[{},{"id":1}]}`, yes},
		{`row.l.exists(x, x.id == 1)`, `{}`, `{"l":[{},{"id":2}]}`, no},
		{`row.l.all(x, x.id == 1)`, `{}`, `{"l":[{},{"id":1}]}`, no},
		{`!row.l.all(x, x.id == 1)`, `{}`, `{"l":[{},{"id":2}]}`, yes},
		{`row.l.exists_one(x, x.id == 1)`, `{}`, `{"l":[{},{"id":1}]}`, no},
	})
}

func TestAPresenceIsAskedBeforeAValue(t *testing.T) {
	check(t, []look{
		{`has(claims.team) && row.team == claims.team`, `{"team":"red"}`, `{"team":"red"}`, yes},
		{`has(claims.team) && row.team == claims.team`, `{}`, `{"team":"red"}`, no},
		{`!has(row.team) || row.team == claims.team`, `{"team":"red"}`, `{}`, yes},
		{`!has(row.team) || row.team == claims.team`, `{"team":"red"}`, `{"team":"blue"}`, no},
		{`has(row.a.b)`, `{}`, `{"a":{"b":1}}`, yes},
		{`has(row.a.b)`, `{}`, `{"a":{}}`, no},
		{`has(row.a.b)`, `{}`, `{}`, no},
		{`!has(row.a.b)`, `{}`, `{}`, no}, // row.a is missing: an error
		{`'team' in row`, `{}`, `{"team":1}`, yes},
		{`'team' in row`, `{}`, `{"tea":1}`, no},
		{`claims.k in row`, `{"k":"b"}`, `{"a":1,"b":2}`, yes},
		{`size(row) == 2`, `{}`, `{"a":1,"b":2}`, yes},
		{`row == claims.row`, `{"row":{"a":[1,2]}}`, `{"a":[1,2]}`, yes},
		{`row.__proto__ == 1`, `{}`, `{"__proto__":1}`, yes},
		{`has(row.constructor)`, `{}`, `{}`, no},
	})
}

func TestAListTellsWhoIsInIt(t *testing.T) {
	const c = `{"sub":"ada","tags":["b","c"]}`
	check(t, []look{
		{`row.members.exists(m, m.id == claims.sub)`, c, `{"members":[{"id":"bob"},{"id":"ada"}]}`, yes},
		{`row.members.exists(m, m.id == claims.sub)`, c, `{"members":[{"id":"bob"}]}`, no},
		{`row.tags.exists(t, t in claims.tags)`, c, `{"tags":["a","b"]}`, yes},
		{`row.tags.all(t, t in claims.tags)`, c, `{"tags":["a","b"]}`, no},
		{`row.tags.all(t, t in claims.tags)`, c, `{"tags":[]}`, yes},
		{`row.tags.exists_one(t, t in claims.tags)`, c, `{"tags":["b","c"]}`, no},
		{`row.items.map(i, i.price * i.n).exists(p, p > 10)`, c, `{"items":[{"price":4,"n":3}]}`, yes},
		{`row.items.filter(i, i.done).size() == 1`, c, `{"items":[{"done":true},{"done":false}]}`, yes},
		{`row.items.filter(i, i.done).map(i, i.by).exists(b, b == claims.sub)`, c, `{"items":[{"done":true,"by":"ada"}]}`, yes},
		{`row.items.map(i, [i.a, i.b]) == [[1, 2]]`, c, `{"items":[{"a":1,"b":2}]}`, yes},
		{`row.rights.exists(k, k == claims.sub)`, c, `{"rights":{"ada":"r"}}`, yes},
		{`row.rights.map(k, k) == ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']`, c, `{"rights":{"h":1,"b":1,"c":1,"g":1,"e":1,"f":1,"d":1,"a":1}}`, yes},
		{`row.a + row.b == [1, 2, 3]`, c, `{"a":[1],"b":[2,3]}`, yes},
		{`[row.owner, row.editor].exists(x, x == claims.sub)`, c, `{"owner":"bob","editor":"ada"}`, yes},
		{`row.l == [1, 'a', null, true, 1.5]`, c, `{"l":[1,"a",null,true,1.5]}`, yes},
		{`row.l == [1, 'a', null, true, 1.5]`, c, `{"l":[1,"a",null,true,1.25]}`, no},
	})
}

func TestTwoUsersByTheirNumbersAreNotOne(t *testing.T) {
	const equal = `row.id == claims.id`
	check(t, []look{
		{equal, `{"id":1}`, `{"id":1}`, yes},
		{equal, `{"id":1}`, `{"id":1.0}`, yes},
		{equal, `{"id":1.0}`, `{"id":1}`, yes},
		{equal, `{"id":1000}`, `{"id":1e3}`, yes},
		{equal, `{"id":1}`, `{"id":1.5}`, no},
		{equal, `{"id":1}`, `{"id":"1"}`, no},
		{equal, `{"id":1}`, `{"id":true}`, no},
		{equal, `{"id":0}`, `{"id":-0}`, yes},
		{equal, `{"id":0}`, `{"id":-0.0}`, yes},
		{equal, `{"id":9007199254740993}`, `{"id":9007199254740993}`, yes},
		{equal, `{"id":9007199254740993}`, `{"id":9007199254740992}`, no},
		{equal, `{"id":9007199254740993}`, `{"id":9007199254740992.0}`, no},
		{equal, `{"id":9007199254740993.0}`, `{"id":9007199254740992.0}`, no},
		{equal, `{"id":9007199254740993}`, `{"id":9.007199254740992e15}`, no},
		{equal, `{"id":9007199254740993}`, `{"id":9.007199254740993e15}`, yes},
		{equal, `{"id":9007199254740992.5}`, `{"id":9007199254740992}`, no},
		{equal, `{"id":-9007199254740993}`, `{"id":-9007199254740992.0}`, no},
		{equal, `{"id":9223372036854775807}`, `{"id":9223372036854775808}`, no},
		{equal, `{"id":9223372036854775807}`, `{"id":9223372036854775808.0}`, no},
		{equal, `{"id":9223372036854775808}`, `{"id":9223372036854775808}`, yes},
		{equal, `{"id":18446744073709551615}`, `{"id":18446744073709551614}`, no},
		{equal, `{"id":18446744073709551615}`, `{"id":18446744073709551616}`, no},
		{equal, `{"id":18446744073709551615}`, `{"id":18446744073709551616.0}`, no},
		{equal, `{"id":18446744073709551616}`, `{"id":18446744073709551616.0}`, yes},
		{equal, `{"id":18446744073709551617}`, `{"id":18446744073709551616}`, no},
		{equal, `{"id":18446744073709551617}`, `{"id":18446744073709551617}`, yes},
		{equal, `{"id":1e999}`, `{"id":2e999}`, no},
		{`row.ids == claims.ids`, `{"ids":[9007199254740993]}`, `{"ids":[9007199254740992]}`, no},
		{`row.ids == claims.ids`, `{"ids":[18446744073709551617]}`, `{"ids":[18446744073709551618]}`, no},
		{`claims.id in row.ids`, `{"id":9007199254740993}`, `{"ids":[9007199254740992,9007199254740992.0]}`, no},
		{`row.id in [9007199254740993, 2.0]`, `{}`, `{"id":9007199254740992}`, no},
		{`row.id in [9007199254740993, 2.0]`, `{}`, `{"id":9007199254740993}`, yes},
		{`row.id in [9007199254740993, 2.0]`, `{}`, `{"id":2}`, yes},
		{`row.n < 5`, `{}`, `{"n":18446744073709551616}`, no},
		{`row.n > 5`, `{}`, `{"n":18446744073709551616}`, no},
		{`row.n > 5`, `{}`, `{"n":18446744073709551615}`, yes},
		{`row.n > 4.5 && row.n < 1e3`, `{}`, `{"n":5}`, yes},
		{`type(row.n) == int`, `{}`, `{"n":5}`, yes},
		{`type(row.n) == double`, `{}`, `{"n":5.0}`, yes},
		{`type(row.n) == uint`, `{}`, `{"n":18446744073709551615}`, yes},
	})
}

func TestOfAFieldThatComesTwiceTheLastCounts(t *testing.T) {
	check(t, []look{
		{`row.owner == claims.sub`, `{"sub":"ada"}`, `{"owner":"bob","owner":"ada"}`, yes},
		{`row.owner == claims.sub`, `{"sub":"ada"}`, `{"owner":"ada","owner":"bob"}`, no},
		{`row.owner == claims.sub`, `{"sub":"ada"}`, `{"owner":"ada","\u006fwner":"bob"}`, no},
		{`row.o.a == 1`, `{}`, `{"o":{"a":1},"o":{"b":1}}`, no},
		{`row.o.a == 1`, `{}`, `{"o":{"a":2,"a":1}}`, yes},
		{`size(row) == 1`, `{}`, `{"a":1,"a":2}`, yes},
	})
}

func TestTextIsReadAsJSONSaysIt(t *testing.T) {
	check(t, []look{
		{`row.s == claims.s`, `{"s":"a\"b\\c\nd"}`, `{"s":"a\u0022b\\c\nd"}`, yes},
		{`row.s == claims.s`, `{"s":"é😀"}`, `{"s":"\u00e9\ud83d\ude00"}`, yes},
		{`row.s == claims.s`, `{"s":"\\"}`, `{"x":"\\","s":"\\"}`, yes},
		{`row.s == claims.s`, `{"s":"<&>"}`, `{"s":"<&>"}`, yes},
		{`row.s == '\ufffd'`, `{}`, `{"s":"\ud800"}`, yes},
		{`row.s.size() == 1`, `{}`, `{"s":"😀"}`, yes},
		{`row['é"'] == 1`, `{}`, `{"\u00e9\"":1}`, yes},
		{`row.s == 1`, `{}`, "\t{ \"a\" : [ ] ,\r\n \"b\" : { } , \"s\" :1 }\n", yes},
		{`row.s == 1`, `{}`, `{"a":"}","b":"\\\"}","c":[{"s":2},"]"],"s":1}`, yes},
	})
}

func TestTimesAreComparedAsTimes(t *testing.T) {
	check(t, []look{
		{`timestamp(row.at) >= timestamp('2026-01-01T00:00:00Z')`, `{}`, `{"at":"2026-01-01T01:00:00+01:00"}`, yes},
		{`timestamp(row.at) >= timestamp('2026-01-01T00:00:00Z')`, `{}`, `{"at":"2025-12-31T23:59:59Z"}`, no},
		{`timestamp(row.at).getHours() == 23`, `{}`, `{"at":"2026-01-01T01:00:00+02:00"}`, yes},
		{`timestamp(row.to) - timestamp(row.at) > duration('1h')`, `{}`, `{"at":"2026-01-01T00:00:00Z","to":"2026-01-01T02:00:00Z"}`, yes},
		{`timestamp(claims.iat) < timestamp(row.at)`, `{"iat":1767225600}`, `{"at":"2026-01-01T00:00:01Z"}`, yes},
	})
}
