// Command bench measures a built agent beside the floor of the same run: one
// synced block and two round trips to the engine, at the same moment on the same
// machine. Machines are noisy; the ratio is
// what counts. See `make bench`.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"
)

func main() {
	agent := flag.String("agent", "bin/agent", "the built agent")
	runs := flag.Int("runs", 300, "runs of each quick row")
	updates := flag.Int("updates", 10000, "updates before the memory is read")
	long := flag.Int("long", 0, "instead of all else, write a history of so many records and print the curve")
	keep := flag.Int("prune-history", 0, "with -long, prune the history to so many records")
	takes := flag.Duration("engine-takes", 0, "time that the engine takes for a batch, besides its own work")
	dir := flag.String("dir", "", "where to work; a temporary directory if not given")
	crowd := flag.String("crowd", "", "instead of all else, be the listeners and pollers of the agent at this `address`")
	only := flag.Bool("load", false, "measure only what a load costs")
	flag.Parse()
	if *crowd != "" {
		if err := runCrowd(*crowd); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := measure(*agent, *dir, *runs, *updates, *long, *keep, *takes, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A row is one line of the table. floor is nil where the budget is absolute.
type row struct {
	name        string
	ours, floor []time.Duration
	budget      string
	note        string
	ratios      []float64 // of rounds; their median counts, if there are any
	held        string    // memory, with a load
}

func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	s := slices.Clone(ds)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000)
}

const columns = "%-42s %9s %9s %9s %9s %6s %6s  %s\n"

func heading() {
	fmt.Printf(columns, "JOB (ms)", "P50", "P99", "FLOOR P50", "P99", "RATIO", "P99", "BUDGET")
}

// show prints rows as soon as they are measured.
func show(rows ...row) {
	for _, r := range rows {
		if r.note != "" {
			fmt.Printf("%-42s %-41s  %s\n", r.name, r.note, r.budget)
			continue
		}
		p50, p99 := quantile(r.ours, 0.5), quantile(r.ours, 0.99)
		floor := [4]string{}
		if len(r.floor) > 0 {
			f50, f99 := quantile(r.floor, 0.5), quantile(r.floor, 0.99)
			ratio := float64(p50) / float64(f50)
			if n := len(r.ratios); n > 0 {
				ratio = slices.Sorted(slices.Values(r.ratios))[n/2]
			}
			floor = [4]string{ms(f50), ms(f99), fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f", float64(p99)/float64(f99))}
		}
		fmt.Printf(columns, r.name, ms(p50), ms(p99), floor[0], floor[1], floor[2], floor[3], r.budget)
	}
}
