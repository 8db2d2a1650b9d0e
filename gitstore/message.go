package gitstore

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// The shape of a commit message:
//
//	subject                          one line, at most 200 bytes
//
//	    what changed and why         foreign text, every line indented
//
//	Snapshot-Id: snapshot_…          trailers: the last paragraph, ours alone
//
// The first paragraph is one line and the second is indented throughout, so
// that nothing foreign can stand at the beginning of a line of the last one.

const (
	maxLine   = 200     // bytes of one line of foreign text
	maxReason = 1 << 10 // bytes of one line that says why
	maxBody   = 4 << 10 // bytes of the body
	maxErrors = 20      // errors kept of a rejection
	indent    = "    "

	maxEntries = 64       // entries of a hold
	maxHold    = 40 << 10 // bytes of a hold in snapshot.json
)

// The trailers.
const (
	keyID          = "Snapshot-Id"
	keyKind        = "Kind"
	keyEnvironment = "Environment"
	keyInstance    = "Instance"
	keyRevision    = "Source-Revision"
	keyRequestedBy = "Requested-By"
	keyOutcomeOf   = "Outcome-Of"
)

// cleanLines makes each text one line of at most maxLine bytes.
func cleanLines(texts ...*string) {
	for _, text := range texts {
		*text = problem.Line(*text, maxLine)
	}
}

// scissors are a line below which git looks for no trailers.
const scissors = "------------------------ >8 ------------------------"

// subject is the first line of the commit: what changed, and why. rejected is the
// parent's, for a revert.
func subject(rec *record.Record, rejected string) string {
	if rec.Kind == record.KindRevert {
		return `Revert "` + problem.Line(rejected, maxLine-len(`Revert ""`)) + `"`
	}
	what, why := changesLine(rec.Changes), problem.Line(rec.Description, maxLine)
	if rec.Kind == record.KindChange && rec.Source.Subject != "" {
		why = problem.Line(rec.Source.Subject, maxLine)
	}
	text := cmp.Or(what, why)
	switch {
	case what != "" && why != "":
		text = problem.Line(what+": "+why, maxLine)
	case text != "":
	case rec.Kind == record.KindRollback:
		text = "Roll back"
	case rec.Kind == record.KindNote && rec.Held == nil:
		text = "End the hold"
	case rec.Kind == record.KindNote:
		text = "Hold"
	default:
		text = "Update nothing"
	}
	return strings.ReplaceAll(text, scissors, ">8")
}

// changesLine returns a change that the engine rebuilds for, or else the first one, and
// how many others there are: "a 2048 -> 4096 and 2 more".
func changesLine(changes []schema.Change) string {
	if len(changes) == 0 {
		return ""
	}
	c := changes[max(0, slices.IndexFunc(changes, func(c schema.Change) bool { return c.Critical }))]
	text := problem.Line(fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New), maxLine/2)
	if n := len(changes) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// body is the second paragraph: what changed, why, and what is held.
func body(rec *record.Record, subject string) string {
	var lines []string
	if !strings.HasSuffix(subject, rec.Description) {
		lines = append(lines, rec.Description)
	}
	for _, c := range rec.Changes {
		lines = append(lines, c.String())
	}
	for _, e := range rec.Errors {
		if e != rec.Description {
			lines = append(lines, "error: "+e)
		}
	}
	if h := rec.Held; h != nil {
		lines = append(lines, h.Text())
		for i := range h.Entries {
			lines = append(lines, "held: "+h.Entries[i].String())
		}
	}
	var b strings.Builder
	for i, line := range lines {
		line = problem.Line(line, maxReason)
		if line == "" {
			continue
		}
		if b.Len()+len(indent)+len(line)+40 > maxBody {
			fmt.Fprintf(&b, "%s(and %d lines more)\n", indent, len(lines)-i)
			break
		}
		b.WriteString(indent + line + "\n")
	}
	return b.String()
}

func message(rec *record.Record, subject string) string {
	text := body(rec, subject)
	if text != "" {
		text += "\n"
	}
	return subject + "\n\n" + text + trailers(rec)
}

// trailers is the last paragraph of the message.
func trailers(rec *record.Record) string {
	var b strings.Builder
	write := func(key, value string) { b.WriteString(key + ": " + value + "\n") }
	write(keyID, rec.ID)
	write(keyKind, string(rec.Kind))
	write(keyEnvironment, string(rec.Environment))
	write(keyInstance, rec.Instance)
	if rec.Source.Revision != "" {
		write(keyRevision, rec.Source.Revision)
	}
	if rec.RequestedBy != nil {
		write(keyRequestedBy, strconv.Itoa(*rec.RequestedBy))
	}
	if o := rec.OutcomeOf; o != nil {
		write(keyOutcomeOf, o.ID+" "+string(o.Outcome))
	}
	return b.String()
}

// parseTrailers reads the last paragraph of a message.
func parseTrailers(message string) map[string]string {
	trailers := map[string]string{}
	for line := range strings.SplitSeq(message[strings.LastIndex(message, "\n\n")+1:], "\n") {
		key, value, _ := strings.Cut(line, ": ")
		trailers[key] = value
	}
	return trailers
}

// settlement reads what a record says of the one before, nil for nothing.
func settlement(trailers map[string]string) *record.Settlement {
	id, outcome, _ := strings.Cut(trailers[keyOutcomeOf], " ")
	if !settles(record.Outcome(outcome)) {
		return nil
	}
	return &record.Settlement{ID: id, Outcome: record.Outcome(outcome)}
}

// readTrailers gives snap what only the trailers have, and checks that they are its own:
// a message with anything else in its last paragraph is not ours.
func readTrailers(snap *record.Record, message string) error {
	t := parseTrailers(message)
	if uid, err := strconv.Atoi(t[keyRequestedBy]); err == nil {
		snap.RequestedBy = &uid
	}
	snap.OutcomeOf = settlement(t)
	if want := trailers(snap); !strings.HasSuffix(message, "\n\n"+want) {
		return fmt.Errorf("the trailers are not those of snapshot.json: %q", problem.Cut(want, 400))
	}
	return nil
}

// settles reports whether a child may say o of its parent.
func settles(o record.Outcome) bool { return o == record.Rejected || o == record.Superseded }

// cleanse returns rec with all foreign text made one line and bounded, with its own
// slices, as reading the record back gives it.
func cleanse(rec record.Record) record.Record {
	src := &rec.Source
	rec.Description = problem.Line(rec.Description, maxReason)
	cleanLines(&rec.AgentVersion, &rec.SchemaDigest,
		&src.Kind, &src.Location, &src.Revision, &src.Author, &src.Subject, &src.Signer, &src.Key)
	errs := rec.Errors
	rec.Errors = append([]string(nil), errs[:min(len(errs), maxErrors)]...)
	if more := len(errs) - maxErrors; more > 0 {
		rec.Errors = append(rec.Errors, fmt.Sprintf("(and %d more)", more))
	}
	for i := range rec.Errors {
		rec.Errors[i] = problem.Line(rec.Errors[i], maxReason)
	}
	rec.Changes = append([]schema.Change{}, rec.Changes...)
	rec.Experiments = append([]schema.Membership{}, rec.Experiments...)
	for i := range rec.Experiments {
		cleanLines(&rec.Experiments[i].Name)
	}
	provenance := make(schema.Provenance, len(rec.Provenance))
	for name, o := range rec.Provenance {
		cleanLines(&name, &o.File, &o.Layer, &o.Commit)
		provenance[name] = o
	}
	rec.Provenance = provenance
	rec.Held = cleanseHold(rec.Held, rec.Config)
	rec.Requester = cleanseRequester(rec.Requester)
	return rec
}

func cleanseRequester(q *record.Requester) *record.Requester {
	if q != nil {
		q = new(*q)
		cleanLines(&q.User, &q.Login)
	}
	return q
}

// cleanseHold is cleanse of a hold, with the entries in the order in which they began.
// One that is too large counts as a pause; the oldest entries go.
func cleanseHold(h *record.Hold, config schema.Parameters) *record.Hold {
	if h == nil {
		return nil
	}
	clean := func(by, reason *string, who **record.Requester) {
		cleanLines(by)
		*reason = problem.Line(*reason, maxReason)
		*who = cleanseRequester(*who)
	}
	held := *h
	held.Entries = slices.Clone(h.Entries)
	clean(&held.By, &held.Reason, &held.Requester)
	for i := range held.Entries {
		e := &held.Entries[i]
		clean(&e.By, &e.Reason, &e.Requester)
	}
	slices.SortStableFunc(held.Entries, func(a, b record.Entry) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.String(), b.String()))
	})
	back := new(record.Hold)
	if text, err := json.Marshal(held); err != nil || json.Unmarshal(text, back) != nil {
		return &held // encodeSnapshot reports it
	}
	back.Cover(config.Names())
	for len(back.Entries) > maxEntries || len(back.Entries) > 0 && sizeOfHold(back) > maxHold {
		if !back.Paused {
			back.Paused, back.Reason = true, problem.Line("the hold is too large, and counts as a pause; "+back.Reason, maxReason)
		}
		back.Entries = slices.Delete(back.Entries, 0, max(1, len(back.Entries)-maxEntries))
	}
	return back
}

// sizeOfHold returns how many bytes of snapshot.json a hold takes.
func sizeOfHold(h *record.Hold) int {
	text, _ := json.MarshalIndent(h, "  ", "  ")
	return len(text)
}

// signature reads "Name <mail>", without what `git fsck --strict` would refuse.
func signature(author string) (name, mail string, ok bool) {
	var s object.Signature
	s.Decode([]byte(author))
	name, mail = identText(s.Name), strings.ReplaceAll(identText(s.Email), " ", "")
	return name, mail, name != "" && mail != ""
}

var angleBrackets = strings.NewReplacer("<", "", ">", "")

// identText makes text fit for a name or an address: without angle brackets, and
// without the marks at its ends that git takes away as well.
func identText(text string) string {
	return strings.Trim(angleBrackets.Replace(problem.Line(text, maxLine)), " .,:;\"\\'")
}
