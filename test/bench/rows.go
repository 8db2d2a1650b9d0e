package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// rows measures everything but git, and shows it. Rows that share a floor take turns
// with it, so that a machine that slows down slows both.
func (b *bed) rows(runs, updates int) error {
	engine := row{name: "rename to engine", budget: "ratio 4"}
	applied := row{name: "rename to applied", budget: "ratio 5.5, of p99 6"}
	direct := overSocket(b.socket)
	for range runs {
		floor, err := b.floor(direct)
		if err != nil {
			return err
		}
		renamed, taken, done, err := b.change(false)
		if err != nil {
			return err
		}
		engine.ours, engine.floor = append(engine.ours, taken.Sub(renamed)), append(engine.floor, floor)
		applied.ours, applied.floor = append(applied.ours, done.Sub(renamed)), append(applied.floor, floor)
	}
	phases, err := b.phases()
	if err != nil {
		return err
	}
	show(engine, applied, phases)
	for _, measure := range []func(int) (row, error){b.inPlace, b.rollbackWithin, b.rollbackProcess, b.validateAPI, b.validateProcess, b.current, b.ready} {
		r, err := measure(runs)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		show(r)
	}
	if info, err := os.Stat(b.agent); err == nil {
		show(row{name: "binary", note: fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), budget: "28 MB"})
	}
	return b.memory(updates)
}

var phaseLine = regexp.MustCompile(`(?m)^dtesn_agent_update_duration_seconds_(sum|count)\{phase="(\w+)"\} (\S+)$`)

// phases are the agent's own means of where the time goes.
func (b *bed) phases() (row, error) {
	r := row{name: "of it, mean of"}
	resp, err := b.web.Get(b.url + "/metrics")
	if err != nil {
		return r, err
	}
	text, err := io.ReadAll(resp.Body)
	drain(resp)
	sums := map[string]float64{}
	for _, m := range phaseLine.FindAllStringSubmatch(string(text), -1) {
		v, _ := strconv.ParseFloat(m[3], 64)
		if m[1] == "sum" {
			sums[m[2]] = v
		} else if v > 0 {
			r.note += fmt.Sprintf("%s %.2f  ", m[2], 1000*sums[m[2]]/v)
		}
	}
	return r, err
}

func (b *bed) inPlace(runs int) (row, error) {
	r := row{name: "in-place write to engine (settle 50)", budget: "rename + 50"}
	for range min(runs, 50) {
		renamed, taken, _, err := b.change(true)
		if err != nil {
			return r, err
		}
		r.ours = append(r.ours, taken.Sub(renamed))
	}
	return r, nil
}

// rolled makes a new state, then measures how long roll takes to bring the one
// before back to the engine.
func (b *bed) rolled(r *row, runs int, roll func() error) error {
	for range min(runs, 50) {
		if _, _, _, err := b.change(false); err != nil {
			return err
		}
		for len(b.took) > 0 {
			<-b.took
		}
		time.Sleep(50 * time.Millisecond) // as who reads the status first, and then goes back
		start := time.Now()
		if err := roll(); err != nil {
			return err
		}
		select {
		case taken := <-b.took:
			r.ours = append(r.ours, taken.Sub(start))
		case <-time.After(10 * time.Second):
			return fmt.Errorf("the engine was not told within 10 s")
		}
		select {
		case <-b.told: // or it is taken for that of the next change
		case <-time.After(10 * time.Second):
			return fmt.Errorf("the rollback was not applied within 10 s")
		}
	}
	return nil
}

func (b *bed) rollbackWithin(runs int) (row, error) {
	r := row{name: "rollback to engine, within the agent", budget: "p50 5"}
	client := overSocket(filepath.Join(b.state, "agent.sock"))
	err := b.rolled(&r, runs, func() error {
		resp, err := client.Post("http://agent/rollback", "application/json", strings.NewReader(`{"reason": "bench", "timeout_seconds": 30}`))
		if err != nil {
			return err
		}
		drain(resp)
		return nil
	})
	return r, err
}

func (b *bed) rollbackProcess(runs int) (row, error) {
	r := row{name: "rollback to engine, as a command", budget: "p50 20"}
	err := b.rolled(&r, runs, func() error {
		return exec.Command(b.agent, "rollback", "--reason", "bench", "--state", b.state).Run()
	})
	return r, err
}

func (b *bed) validateAPI(runs int) (row, error) {
	r := row{name: "POST /v1/config/validate", budget: "p50 0.70"}
	body := []byte(`{"parameter": "esn_reservoir_size", "value": 2048}`)
	for range runs {
		start := time.Now()
		resp, err := b.web.Post(b.url+"/v1/config/validate", "application/json", bytes.NewReader(body))
		if err != nil {
			return r, err
		}
		drain(resp)
		r.ours = append(r.ours, time.Since(start))
	}
	return r, nil
}

func (b *bed) validateProcess(runs int) (row, error) {
	r := row{name: "agent validate, 4 environments, a process", budget: "p50 50"}
	for range min(runs, 50) {
		start := time.Now()
		if out, err := exec.Command(b.agent, "validate", b.config).CombinedOutput(); err != nil {
			return r, fmt.Errorf("%w: %s", err, out)
		}
		r.ours = append(r.ours, time.Since(start))
	}
	return r, nil
}

func (b *bed) current(runs int) (row, error) {
	r := row{name: "GET /v1/config/current", budget: "p50 0.30"}
	for range runs {
		start := time.Now()
		resp, err := b.web.Get(b.url + "/v1/config/current")
		if err != nil {
			return r, err
		}
		drain(resp)
		if resp.StatusCode != http.StatusOK {
			return r, fmt.Errorf("HTTP %d", resp.StatusCode)
		}
		r.ours = append(r.ours, time.Since(start))
	}
	return r, nil
}

func (b *bed) ready(runs int) (row, error) {
	r := row{name: "start to readyz", budget: "p50 30, 40 with 20,000 records"}
	for range min(runs, 30) {
		b.stop()
		start := time.Now()
		if err := b.start(); err != nil {
			return r, err
		}
		r.ours = append(r.ours, time.Since(start))
	}
	return r, nil
}

var (
	rss        = regexp.MustCompile(`(?m)^(VmRSS|RssAnon):\s+(\d+) kB`)
	goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)
)

// memory is read ten times in the course of many updates, each waited for, and
// with it what else must not grow.
func (b *bed) memory(updates int) error {
	start := time.Now()
	for tenth := 1; tenth <= 10 && updates > 0; tenth++ {
		for range max(updates/10, 1) {
			if _, _, _, err := b.change(false); err != nil {
				return err
			}
		}
		note, err := b.held()
		if err != nil {
			return err
		}
		done := tenth * max(updates/10, 1)
		per := ms(time.Since(start) / time.Duration(done))
		show(row{name: fmt.Sprintf("after %d updates (%s ms each)", done, per), note: note, budget: memoryBudget + ", all flat"})
	}
	return nil
}

const memoryBudget = "32 MB, anonymous 15 MB"

// held is what the agent holds of memory, goroutines and descriptors.
func (b *bed) held() (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	var parts []string
	for _, m := range rss.FindAllStringSubmatch(string(text), -1) {
		parts = append(parts, m[1]+" "+m[2]+" kB")
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	parts = append(parts, fmt.Sprintf("%d descriptors", len(files)))
	resp, err := b.web.Get(b.url + "/metrics")
	if err != nil {
		return "", err
	}
	metrics, err := io.ReadAll(resp.Body)
	drain(resp)
	if m := goroutines.FindSubmatch(metrics); m != nil {
		parts = append(parts, string(m[1])+" goroutines")
	}
	return strings.Join(parts, ", "), err
}
