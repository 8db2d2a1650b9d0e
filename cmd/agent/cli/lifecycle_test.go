package cli

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestAPartThatHangsIsNamed holds that the agent ends although a part does not.
func TestAPartThatHangsIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		hung, broken := make(chan struct{}), errors.New("broken")
		wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		stopped := make(chan string, 2)
		begun := time.Now()
		time.AfterFunc(time.Minute, cancel)
		err := runParts(ctx, 30*time.Second,
			[]part{{"first", func(ctx context.Context) error { <-ctx.Done(); stopped <- "first"; return broken }}},
			[]part{{"disk", func(context.Context) error { <-hung; return nil }}, {"other", wait}},
			[]part{{"last", func(ctx context.Context) error { <-ctx.Done(); stopped <- "last"; return nil }}})
		var stuck *stuckError
		if !errors.As(err, &stuck) || !slices.Equal(stuck.parts, []string{"disk"}) || !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
		if took := time.Since(begun); took != 90*time.Second {
			t.Errorf("ended after %s", took)
		}
		if first, last := <-stopped, <-stopped; first != "first" || last != "last" {
			t.Errorf("stopped %s, then %s", first, last)
		}
		close(hung)
	})
}
