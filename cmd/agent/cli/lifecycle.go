package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// A part is one blocking component of the running agent.
type part struct {
	name string
	run  func(context.Context) error
}

// runParts runs the stages' parts side by side until ctx ends or the first
// part returns; then it stops stage after stage, in the order given, and joins
// each before it stops the next. This is the one place that says in which
// order the agent stops.
func runParts(ctx context.Context, stages ...[]part) error {
	type running struct {
		cancel context.CancelFunc
		wg     sync.WaitGroup
	}
	var mu sync.Mutex
	var errs []error
	over := make(chan struct{})
	var once sync.Once
	rs := make([]*running, len(stages))
	for i, parts := range stages {
		r := &running{}
		var stage context.Context
		stage, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
		rs[i] = r
		for _, p := range parts {
			r.wg.Go(func() {
				err := p.run(stage)
				if err != nil && !errors.Is(err, context.Canceled) {
					mu.Lock()
					errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
					mu.Unlock()
				}
				once.Do(func() { close(over) })
			})
		}
	}
	select {
	case <-ctx.Done():
	case <-over:
	}
	for _, r := range rs {
		r.cancel()
		r.wg.Wait()
	}
	return errors.Join(errs...)
}
