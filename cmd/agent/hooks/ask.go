package hooks

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// askBackoff is the longest wait between two attempts to ask.
const askBackoff = 8 * time.Second

// required returns the hooks that a change needs the agreement of.
func (s *Set) required() (list []*delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.hooks {
		if d.Required {
			list = append(list, d)
		}
	}
	return list
}

// Required returns the names of the hooks that a change needs the agreement of, and how
// long Ask waits for them.
func (s *Set) Required() (names []string, wait time.Duration) {
	for _, d := range s.required() {
		names, wait = append(names, d.Name), max(wait, d.Timeout)
	}
	return names, wait
}

// Ask asks the required hooks about a change, all at once, and waits for each as long as
// its timeout says. The first veto ends the others.
func (s *Set) Ask(ctx context.Context, change *record.Record) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hooks := s.required()
	answers := make(chan error, len(hooks))
	for _, d := range hooks {
		go func() { answers <- d.ask(ctx, change) }()
	}
	var veto *apply.Veto
	var failures []error
	for range hooks {
		err := <-answers
		if veto == nil && errors.As(err, &veto) {
			cancel()
		}
		failures = append(failures, err)
	}
	if veto != nil {
		return veto
	}
	return errors.Join(failures...)
}

// ask asks one hook until it answers or its time is over. An attempt may take all of it.
func (d *delivery) ask(ctx context.Context, change *record.Record) error {
	e := apply.RecordEvent(apply.EventProposed, change)
	e.Outcome = record.Pending
	d.note(change.ID, "")
	all, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	var last error
	for wait := time.Second; ; wait = min(2*wait, askBackoff) {
		v, after, err := d.deliver(all, d.set.client, change.Instance+"/"+change.Commit, &e)
		switch {
		case v == verdictDelivered:
			d.noteVerdict("agreed to "+change.ID, nil)
			return nil
		case v == verdictVeto:
			d.noteVerdict("vetoed "+change.ID, err)
			return &apply.Veto{Reason: fmt.Sprintf("hook %s rejected it: %v", d.Name, err)}
		case last == nil || all.Err() == nil: // else it says only that the time is over
			var exit *exec.ExitError
			if last = err; errors.As(err, &exit) {
				last = fmt.Errorf("%w (0 agrees, 1 says no)", err)
			}
			d.note(change.ID, last.Error())
			d.set.opt.Logger.Debug("asking failed", "hook", d.Name, "snapshot", change.ID, "error", last)
		}
		select {
		case <-all.Done():
			d.note("", last.Error())
			if ctx.Err() == nil { // else it is not asked any more
				d.noteNoVerdict(change.ID, last)
			}
			return fmt.Errorf("hook %s gave no verdict within %s; last: %w", d.Name, d.Timeout, last)
		case <-time.After(max(after, wait)):
		}
	}
}

// note notes the record that the hook is asked about, and why the last attempt failed.
func (d *delivery) note(asked, failure string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.status.Asked = asked; failure != "" || d.status.FailingAt == 0 {
		d.status.LastError = failure
	}
}

// noteVerdict notes the verdict of the hook; why is what it said of a veto.
func (d *delivery) noteVerdict(verdict string, why error) {
	if why != nil {
		verdict += ": " + why.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Asked, d.status.LastError, d.status.FailingAt = "", "", 0
	d.status.LastAnswer = verdict + ", " + time.Now().UTC().Format(time.RFC3339)
}

// noteNoVerdict notes that the hook gave no verdict on a record in its time, and why.
func (d *delivery) noteNoVerdict(id string, why error) {
	d.noteFailure(why)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.LastAnswer = "no verdict on " + id + ", " + time.Now().UTC().Format(time.RFC3339)
}
