//go:build linux

// Command crash kills the agent at each system call that writes, and holds
// after each kill that nothing is lost and nothing is half done.
//
// The program runs as it is, under ptrace(2): a seccomp filter stops it at the
// calls in the table `writers`, and at the chosen one it is killed with SIGKILL,
// before the call has any effect (the kernel skips the call of a thread that is
// to die) or after it had it and before the program hears of it.
//
// A point to kill at is named by the call, the place and how manyeth of these
// it is in its phase of the story, such as "after #2 of mkdirat
// state/snapshots.git/objects/xx"; not by a number of a thread, for which
// thread does what differs from run to run. Each phase (a change, a rejection, a
// start after a kill, …) is run unharmed first, and what it does is the list of
// points. What is guaranteed: with -all, each call of an unharmed phase is killed at,
// before and after, except the middle ones of a long series of the same (each
// object that a packing removes), and except points that did not come again in
// three tries, which the report counts as missed. What a start does after a kill
// depends on what was cut: such starts are killed too, as often as they come.
//
// The stories go on with the same state directory after each kill. At each rest the
// engine, the refs, the head's tree and the status agree; every snapshot that
// status, log or an order's exit code said to be applied is in the history, not
// settled otherwise; ids count up by one; `git fsck --strict` is clean; nothing is
// left over; and the log speaks of no repair. Each record has its events in the log of
// events, once; and a hook that outlives the agent was told each of them at least once,
// in order, and always as the same id and text.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A failure is kept as a directory with this file beside the state.
const planFile = "plan.json"

// A retold is a round of a story that failed, enough to tell it again.
type retold struct {
	Story string `json:"story"`
	Cuts  []cut  `json:"cuts"`
	Error string `json:"error"`
}

type options struct {
	agent   string
	points  int
	all     bool
	seed    uint64
	workers int
	plan    string
	most    time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.agent, "agent", "bin/agent", "the `program` to kill")
	flag.IntVar(&o.points, "points", 2000, "how many kills at least")
	flag.BoolVar(&o.all, "all", false, "go on until every point that is known was tried")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "chooses the points, as far as the runs are alike")
	flag.IntVar(&o.workers, "workers", 2, "how many agents at a time")
	flag.StringVar(&o.plan, "plan", "", "tell the round again that this `file` recorded, and no other")
	flag.DurationVar(&o.most, "most", time.Hour, "give up after this time")
	flag.Parse()
	code := 0
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		if code = 1; errors.Is(err, errNoTrace) {
			code = 3
		}
	}
	os.Exit(code)
}

func run(o *options) (err error) {
	if o.agent, err = filepath.Abs(o.agent); err != nil {
		return err
	}
	if _, err := exec.LookPath("git"); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, o.most)
	defer cancel()
	tmp, err := os.MkdirTemp("", "crash-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	prepared := sync.OnceValues(func() (string, error) { // while others go on
		dir := filepath.Join(tmp, "prepared")
		return dir, prepare(dir)
	})
	c := &campaign{options: o, tmp: tmp, table: newTable(ctx, o.seed, o.points, o.all), begun: time.Now(), stories: []*story{
		filesStory(), gitStory("http", "http: ", newServed), packingStory(prepared), gitStory("local", "", newWorktree), probationStory(),
	}}
	if o.plan != "" {
		return c.again()
	}
	fmt.Printf("seed %d\n", o.seed)
	var wg sync.WaitGroup
	for range o.workers {
		wg.Go(c.work)
	}
	wg.Wait()
	c.table.report(os.Stdout)
	fmt.Printf("\n%d kills in %d rounds, %.0f s; %d failures\n", c.table.kills, c.rounds, time.Since(c.begun).Seconds(), len(c.failures))
	if len(c.failures) > 0 {
		return fmt.Errorf("%w, and %d in all", c.failures[0], len(c.failures))
	}
	if c.table.kills < o.points {
		return fmt.Errorf("%d kills when it ended, and %d were to be", c.table.kills, o.points)
	}
	return nil
}

// A campaign tells stories until there were enough kills.
type campaign struct {
	*options
	tmp     string
	table   *table
	stories []*story
	begun   time.Time

	mu       sync.Mutex
	rounds   int
	failures []error
}

// tolerated is how many failures end the campaign.
const tolerated = 5

func (c *campaign) work() {
	for {
		s, dir := c.choose()
		if s == nil {
			return
		}
		r := &round{table: c.table}
		if err := c.tell(dir, s, r); err != nil {
			c.fail(dir, s, r, err)
		}
		_ = os.RemoveAll(dir)
	}
}

// choose says what to tell next, and where; nil when there were kills enough.
func (c *campaign) choose() (*story, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) >= tolerated {
		return nil, ""
	}
	turn := c.rounds
	if all := len(c.stories); turn >= all { // by then each was told once
		turn /= 2
	}
	best, most := c.stories[turn%len(c.stories)], 0
	for _, s := range c.stories {
		// and every other round, or each once there were kills enough, goes to whom the most is left of
		if left := c.table.left(s); left > most && c.rounds >= len(c.stories) && (c.rounds%2 == 0 || c.table.isOver()) {
			best, most = s, left
		}
	}
	if c.table.enough() {
		return nil, ""
	}
	c.rounds++
	return best, filepath.Join(c.tmp, fmt.Sprintf("round%d", c.rounds))
}

// tell tells a story in a directory of its own.
func (c *campaign) tell(dir string, s *story, plan planner) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	w, err := newWorld(dir, c.agent, s)
	if err != nil {
		return err
	}
	defer w.end()
	return w.tell(s, plan)
}

// fail keeps what a failure needs to be understood and to be had again.
func (c *campaign) fail(dir string, s *story, r *round, failure error) {
	kept, err := os.MkdirTemp("", "crash-failed-")
	if err == nil {
		err = exec.Command("cp", "-a", dir, filepath.Join(kept, "world")).Run() // with its sockets
	}
	text, _ := json.MarshalIndent(retold{s.name, r.cuts, failure.Error()}, "", "  ")
	plan := filepath.Join(kept, planFile)
	err = errors.Join(err, os.WriteFile(plan, text, 0o644))
	last := "no kill"
	if n := len(r.cuts); n > 0 {
		last = r.cuts[n-1].Phase + ", " + r.cuts[n-1].Point.String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(failure, errNoTrace) {
		c.failures = append(c.failures, failure)
		return
	}
	c.failures = append(c.failures, fmt.Errorf("%w\n  the last point: %s\n  kept in %s (%v); again: go run ./test/crash -agent %s -plan %s", failure, last, kept, err, c.agent, plan))
	fmt.Println("FAILED:", c.failures[len(c.failures)-1])
}

// again tells a recorded round.
func (c *campaign) again() error {
	text, err := os.ReadFile(c.plan)
	if err != nil {
		return err
	}
	var r retold
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("%s: %w", c.plan, err)
	}
	for _, s := range c.stories {
		if s.name == r.Story {
			if err := c.tell(filepath.Join(c.tmp, "again"), s, replay(r.Cuts)); err != nil {
				return err
			}
			fmt.Println("nothing failed this time: what the agent's threads did meanwhile may have mattered; try again")
			return nil
		}
	}
	return fmt.Errorf("%s: there is no story %q", c.plan, r.Story)
}
