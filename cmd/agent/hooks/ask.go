package hooks

import (
	"context"
	"errors"
	"fmt"
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

// Required returns the names of the hooks that a change needs the agreement of.
func (s *Set) Required() (names []string) {
	for _, d := range s.required() {
		names = append(names, d.Name)
	}
	return names
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
			d.note("", "")
			return nil
		case v == verdictVeto:
			d.note("", "")
			return &apply.Veto{Reason: fmt.Sprintf("hook %s rejected it: %v", d.Name, err)}
		case last == nil || all.Err() == nil: // else it says only that the time is over
			last = err
			d.note(change.ID, err.Error())
		}
		select {
		case <-all.Done():
			d.note("", last.Error())
			return fmt.Errorf("hook %s did not answer within %s: %w", d.Name, d.Timeout, last)
		case <-time.After(max(after, wait)):
		}
	}
}

// note notes the record that the hook is asked about, and why the last attempt failed.
func (d *delivery) note(asked, failure string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Asked, d.status.LastError = asked, failure
}
