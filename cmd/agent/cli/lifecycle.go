package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A part is one blocking component of the running agent.
type part struct {
	name string
	run  func(context.Context) error
}

// A stuckError says which parts did not end when they were told to: they wait
// for a disk, say, that does not answer. Nothing may be waited for any more.
type stuckError struct {
	parts    []string
	patience time.Duration
}

func (e *stuckError) Error() string {
	return fmt.Sprintf("still busy %s after it was told to stop: %s", e.patience, strings.Join(e.parts, ", "))
}

// A stage is parts that run side by side and stop together.
type stage struct {
	cancel context.CancelFunc
	joined chan struct{} // closed once all have returned

	mu   sync.Mutex
	left []string // the names of those that have not
	errs []error
}

// start runs the parts; over is called as each returns.
func start(ctx context.Context, parts []part, over func()) *stage {
	s := &stage{joined: make(chan struct{})}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	for _, p := range parts {
		s.left = append(s.left, p.name)
		wg.Go(func() {
			err := p.run(ctx)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.left = slices.DeleteFunc(s.left, func(name string) bool { return name == p.name })
			if err != nil && !errors.Is(err, context.Canceled) {
				s.errs = append(s.errs, fmt.Errorf("%s: %w", p.name, err))
			}
			over()
		})
	}
	go func() { wg.Wait(); close(s.joined) }()
	return s
}

// runParts runs the stages' parts side by side until ctx ends or the first
// part returns; then it stops stage after stage, in the order given, and joins
// each before it stops the next. This is the one place that says in which
// order the agent stops. When that takes longer than patience the parts that
// are left are named by a *stuckError: the process can end all the same, for
// what is on record is finished at the next start.
func runParts(ctx context.Context, patience time.Duration, parts ...[]part) error {
	over := make(chan struct{})
	var once sync.Once
	var stages []*stage
	for _, p := range parts {
		stages = append(stages, start(ctx, p, func() { once.Do(func() { close(over) }) }))
	}
	select {
	case <-ctx.Done():
	case <-over:
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	var errs []error
	for _, s := range stages {
		s.cancel()
		select {
		case <-s.joined:
			errs = append(errs, s.errs...)
		case <-late.C:
			for _, s := range stages {
				s.cancel() // nobody waits for them
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return errors.Join(append(errs, &stuckError{slices.Clone(s.left), patience})...)
		}
	}
	return errors.Join(errs...)
}
