package apply

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A hold is a list of entries, each of values that must not come together (package
// record). What is held, by whom:
//
//	operator's rollback   one entry a parameter, for each value of what is applied, pending or declared that is not the target's
//	probation, hook       one entry, of all values that the change brought
//	engine's refusal      one entry, of the whole set
//
// Values that no layer declared are neither held nor matched. An entry ends when a change
// without its values is applied, or by an order. What is merely declared, invalid,
// rejected or withdrawn ends nothing.

// hold returns the hold in force, nil for none.
func (s *State) hold() *record.Hold {
	var own *record.Hold
	if s.head != nil {
		own = s.heldSince(s.head, s.isSettled())
	}
	if s.lost == nil || own == nil {
		return cmp.Or(s.lost, own)
	}
	both := *s.lost // that of the head is in force when lost ends
	both.Reason += "; besides, the newest record that can be read is " + own.Text()
	both.Entries = own.Entries
	return &both
}

// entriesOf returns the entries of hold, which may be nil.
func entriesOf(hold *record.Hold) []record.Entry {
	if hold == nil {
		return nil
	}
	return hold.Entries
}

// without returns the entries for which ended is false.
func without(entries []record.Entry, ended func(record.Entry) bool) []record.Entry {
	return slices.DeleteFunc(slices.Clone(entries), ended)
}

func textsOf(entries []record.Entry) (texts []string) {
	for i := range entries {
		texts = append(texts, entries[i].String())
	}
	return texts
}

// heldSince returns the hold in force since rec became the head. A change has the hold
// that it was tried under: once it is applied, entries without its values have ended.
// Those of parameters that the schema of then, or of today, does not have stay: another
// version of the schema may bring them back.
func (r *rules) heldSince(rec *record.Record, isApplied bool) *record.Hold {
	if rec.Held == nil || rec.Kind != record.KindChange || !isApplied {
		return rec.Held
	}
	isOld := rec.SchemaDigest != r.schema.Schema().Digest()
	left := *rec.Held
	left.Entries = without(left.Entries, func(e record.Entry) bool {
		names := append(schema.NewParameters(e.Values).Names(), e.Names...)
		isDormant := slices.ContainsFunc(names, func(name string) bool {
			return !r.knows(name, e.Values[name]) || isOld && rec.Config.Get(name).IsZero()
		})
		return !isDormant && !r.matches(&e, setOf(rec), true)
	})
	if left.Paused = false; len(left.Entries) == 0 {
		return nil
	}
	return &left
}

// setOf returns the parameters of a record and what set them.
func setOf(rec *record.Record) *schema.Configuration {
	return &schema.Configuration{Parameters: rec.Config, Provenance: rec.Provenance}
}

// holds reports whether c must not be applied.
func (r *rules) holds(hold *record.Hold, c *schema.Configuration) bool {
	return hold != nil && (hold.Paused || r.match(hold, c, false) != nil)
}

// match returns the entry of hold, which may be nil, that c matches: an operator's
// before others, nil for none.
func (r *rules) match(hold *record.Hold, c *schema.Configuration, whole bool) (found *record.Entry) {
	if c == nil {
		return nil
	}
	entries := entriesOf(hold)
	for i := range entries {
		if e := &entries[i]; r.matches(e, c, whole) && (found == nil || e.By == byOperator && found.By != byOperator) {
			found = e
		}
	}
	return found
}

// Matching returns the entries of a hold, which may be nil, that c has all values of,
// as an agent with these rules sees it.
func Matching(hold *record.Hold, c *schema.Configuration, of *schema.Rules) []record.Entry {
	return (&rules{schema: of}).matchingEntries(hold, c)
}

// matches reports whether c has all values of the entry; if whole, also those of
// parameters that the schema of today does not know. Where the entry has a
// parameter as unset, so do the values that only the schema gives: the schema may
// begin or cease to give one, or give another, and the files say what they said.
func (r *rules) matches(e *record.Entry, c *schema.Configuration, whole bool) bool {
	p := c.Parameters.Select(func(name string) bool {
		v, listed := e.Values[name]
		rule := r.schema.Parameter(name)
		isDefault := rule != nil && rule.Managed && c.Parameters.Get(name).Equal(rule.Default)
		return !listed || !v.IsZero() || !isDefault && c.Provenance[name].Layer != bySchema
	})
	return e.Matches(p, func(name string) bool { return whole || r.knows(name, e.Values[name]) })
}

// entryOf returns an entry of hold with what c has under the schema of today; what
// no layer declared is unset. If that holds spared (nil for nothing) as well, the
// entry has all values of c.
func (r *rules) entryOf(c *schema.Configuration, hold *record.Hold, spared *schema.Configuration) record.Entry {
	e := hold.Entry(r.known(c.Parameters).Map())
	for _, name := range r.schema.Names() {
		if e.Values[name] = r.valueIn(&c.Parameters, name); c.Provenance[name].Layer == bySchema {
			e.Values[name] = schema.Value{}
		}
	}
	if spared != nil && c.Provenance != nil && r.matches(&e, spared, false) {
		return r.entryOf(&schema.Configuration{Parameters: c.Parameters}, hold, nil)
	}
	return e
}

// rejectionHold returns what is held once the change head is rejected: what was held
// before, and what the rejection is about.
func (s *State) rejectionHold(head, applied *record.Record, v *rejection, now time.Time) *record.Hold {
	hold := &record.Hold{By: v.by, Reason: v.reason, Since: record.Unix(now)}
	var spared *schema.Configuration
	if applied != nil {
		spared = setOf(applied)
	}
	e := hold.Entry(map[string]schema.Value{})
	if v.by != "engine" {
		for _, c := range head.Changes {
			if head.Provenance[c.Parameter].Layer != bySchema {
				e.Values[c.Parameter] = c.New
			}
		}
	}
	if len(e.Values) == 0 || spared != nil && s.matches(&e, spared, false) {
		e = s.entryOf(setOf(head), hold, spared)
	}
	hold.Entries = append([]record.Entry{e}, entriesOf(head.Held)...)
	return hold
}

// rollbackHold returns what an operator's rollback to target holds. Entries in force
// stay, but for those that the target matches.
func (s *State) rollbackHold(q *request, o *Rollback, now time.Time) *record.Hold {
	config, target := q.config, q.target
	hold, before := newHold(o.Reason, o.Requester, now), s.hold()
	hold.Paused = o.Pause
	to := &schema.Configuration{Parameters: config, Provenance: provenanceOf(config, &target.Record)}
	full := *to
	for name, v := range target.Config.Map() {
		if !s.knows(name, v) {
			full.Parameters = full.Parameters.With(name, v)
		}
	}
	hold.Entries = without(entriesOf(before), func(e record.Entry) bool { return s.matches(&e, &full, true) })
	if before != nil && before.Paused {
		hold.Paused = true
		hold.Reason += " (paused before: " + before.Reason + ")"
	}
	sets := []*schema.Configuration{setOf(s.applied), setOf(s.head)}
	if q.declared != nil {
		sets = append(sets, q.declared)
	}
	for _, c := range sets {
		known := &schema.Configuration{Parameters: s.known(c.Parameters), Provenance: c.Provenance}
		for _, name := range s.opt.Rules.Names() {
			v := known.Parameters.Get(name)
			if v.Equal(config.Get(name)) || c.Provenance[name].Layer == bySchema || len(o.Hold) > 0 && !slices.Contains(o.Hold, name) {
				continue
			}
			e := hold.Entry(map[string]schema.Value{name: v})
			if !s.matches(&e, to, false) && !slices.Contains(textsOf(hold.Entries), e.String()) {
				hold.Entries = append(hold.Entries, e)
			}
		}
		// What differs by values that no layer declared must not come back at once.
		if len(o.Hold) == 0 && !s.same(c.Parameters, config) && s.match(hold, known, true) == nil {
			if e := s.entryOf(c, hold, to); !s.matches(&e, to, false) {
				hold.Entries = append(hold.Entries, e)
			}
		}
	}
	if len(hold.Entries) == 0 && !hold.Paused {
		return nil
	}
	return hold
}

// byOperator is who holds what an operator rolled back or paused.
const byOperator = "operator"

// newHold returns an empty hold of the operator who gave an order.
func newHold(reason string, who record.Requester, now time.Time) *record.Hold {
	return &record.Hold{By: byOperator, Reason: reason, Since: record.Unix(now), Requester: &who}
}

// pauseHold returns a pause of the operator who gave an order, with the entries in force.
func (s *State) pauseHold(o *Pause, now time.Time) *record.Hold {
	hold := newHold(o.Reason, o.Requester, now)
	hold.Paused, hold.Entries = true, entriesOf(s.hold())
	return hold
}

// holdBefore returns the hold that was in force before the candidate head, which one
// that is withdrawn, or a rollback that is rejected, leaves as it was; rollbacks that it
// took the place of held nothing either. But a pause that came with a rollback, or while
// it was under way, ends only by resume. For a rollback it needs the backlog.
func (s *State) holdBefore() *record.Hold {
	if s.head.Kind != record.KindRollback {
		return s.head.Held
	}
	before := s.backlog.held
	if s.head.Held == nil || !s.head.Held.Paused || before != nil && before.Paused {
		return before
	}
	hold := *s.head.Held
	hold.Entries = entriesOf(before)
	return &hold
}

// heldProblem says why c, which may be nil, is held, to follow the word "held".
func (s *State) heldProblem(hold *record.Hold, c *schema.Configuration) *problem.Error {
	e := s.match(hold, c, false)
	switch {
	case hold.Paused && hold.By == "agent":
		return newProblem("paused: "+hold.Reason, "restore the history, or begin a new one with: agent resume")
	case hold.Paused && hold.By != byOperator:
		return newProblem("paused: "+hold.Reason, "agent resume")
	case hold.Paused:
		return newProblem("paused by "+whoHolds(hold.By, hold.Requester)+": "+hold.Reason, "agent resume")
	}
	reason, hint := "by "+whoHolds(hold.By, hold.Requester)+": "+hold.Reason, "declare other parameters, or try these again with: agent resume"
	switch {
	case e == nil && len(hold.Entries) > 0:
		reason = entriesReason(hold.Entries[:1])
	case e != nil:
		entries := s.matchingEntries(hold, c)
		together := without(entries, func(o record.Entry) bool { return o.By != e.By || o.Since != e.Since })
		reason = entriesReason(together)
		if more := without(entries, func(o record.Entry) bool { return o.By == e.By && o.Since == e.Since }); len(more) > 0 {
			reason += "; also held: " + strings.Join(textsOf(more), "; ")
		}
		switch {
		case len(entries) > 1:
			hint = "declare other values, or try all of these with: agent resume"
		case len(e.Values) == 1:
			name := slices.Collect(maps.Keys(e.Values))[0]
			hint = fmt.Sprintf("declare another %s, or try this one with: agent resume %s", name, name)
		}
	}
	return newProblem(reason, hint)
}

// matchingEntries returns the entries of hold that c, which may be nil, matches.
func (r *rules) matchingEntries(hold *record.Hold, c *schema.Configuration) []record.Entry {
	return without(entriesOf(hold), func(e record.Entry) bool { return c == nil || !r.matches(&e, c, false) })
}

// entriesReason says why the values of entries that one act began are held.
func entriesReason(entries []record.Entry) string {
	e, values, verb := &entries[0], strings.Join(textsOf(entries), ", "), "is"
	if len(entries) > 1 || len(e.Values) > 1 {
		verb = "are"
	}
	switch e.By {
	case "engine":
		return "the engine rejected it: " + e.Reason
	case byProbation:
		return values + " did not pass the probation: " + e.Reason
	case byHook:
		return values + " " + map[string]string{"is": "was", "are": "were"}[verb] + " rejected: " + e.Reason
	}
	return values + " " + verb + " held by " + whoHolds(e.By, e.Requester) + ": " + e.Reason
}

// whoHolds names who holds, with the operator's name where it is known.
func whoHolds(by string, q *record.Requester) string {
	if q == nil {
		return "the " + by
	}
	return "the " + by + " " + q.String()
}

// heldText says what a hold means for what comes.
func (s *State) heldText(h *record.Hold) string {
	values := strings.Join(textsOf(h.Entries), "; ")
	switch c := s.declared.config; {
	case h.Paused:
		return "paused: nothing is tried until agent resume"
	case c == nil:
		return "held until other values are applied, or until agent resume: " + values + "; whether the source declares them is not known"
	case !s.holds(h, c):
		return "held until agent resume: " + values
	}
	return "held until other values are applied, or until agent resume: " + values
}

// undoneHold returns the hold of a rollback that did not happen.
func undoneHold(held *record.Hold, why string) *record.Hold {
	hold, note := *held, " (the rollback did not happen: "+why+")"
	hold.Reason += note
	hold.Entries = slices.Clone(held.Entries)
	for i := range hold.Entries {
		if e := &hold.Entries[i]; e.Since == held.Since {
			e.Reason += note
		}
	}
	return &hold
}
