package apply_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn"
	"dtesn-agent/dtesn/engine"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher"
)

// A program that keeps a server on what a directory declares, and hears what happens.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err == nil {
		defer os.RemoveAll(dir)
		err = keep(dir)
	}
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// applied: esn_reservoir_size 512 -> 1024
	// applied: esn_reservoir_size 1024 -> 2048
	// rolled_back: esn_reservoir_size 2048 -> 1024
	// held: true
}

// keep runs a reference engine, and a reconciler beside it, until a rollback.
func keep(dir string) error {
	log, rules, socket := slog.New(slog.DiscardHandler), schema.Default().For("production"), filepath.Join(dir, "engine.sock")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := engine.New(engine.Options{Logger: log})
	if err != nil {
		return err
	}
	listener, err := engine.Listen(socket)
	if err != nil {
		return err
	}
	client := dtesn.New(dtesn.Options{Socket: socket, Rules: rules})
	defer client.Close()
	store, _, err := gitstore.Open(ctx, gitstore.Options{Dir: filepath.Join(dir, "state"), Environment: rules.Environment(), Instance: "one", Logger: log})
	if err != nil {
		return err
	}
	defer store.Close()
	defaults, err := json.Marshal(rules.Defaults())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "base.yaml"), fmt.Appendf(nil, "parameters: %s\n", defaults), 0o644)
	}
	if err == nil {
		err = declareSize(dir, 1024)
	}
	if err != nil {
		return err
	}
	source := watcher.NewFiles(watcher.FilesOptions{Root: dir, Environment: rules.Environment()})
	r := apply.New(apply.Options{
		Rules: rules, Instance: "one", Store: store, Engine: client, Source: source, Metrics: noMetrics{}, Logger: log,
		SourceKind: "file", SourceStale: time.Minute, MaxSnapshots: 50, Drift: apply.DriftCorrect, DriftInterval: 30 * time.Second,
	})
	happened := r.Subscribe(100) // before Run, so that nothing is missed

	var parts sync.WaitGroup
	defer func() { cancel(); parts.Wait() }()
	parts.Go(func() { _ = server.Serve(ctx, listener) })
	parts.Go(func() { _ = source.Run(ctx, r) })
	parts.Go(func() { _ = r.Run(ctx) })

	for e := range happened.Events {
		fmt.Printf("%s: %s\n", e.Type, &e)
		switch size := sizeOf(r.Status()); {
		case e.Type == apply.EventApplied && size == 1024:
			err = declareSize(dir, 2048)
		case e.Type == apply.EventApplied:
			parts.Go(func() {
				_, _ = r.Do(ctx, &apply.Rollback{Reason: "it is slow", Requester: record.Requester{UID: os.Getuid()}})
			})
		default:
			fmt.Println("held:", r.Status().Held != nil)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// sizeOf returns what is applied, which the status says by the time an event is told.
func sizeOf(s *apply.Status) int {
	n, _ := s.Applied.Config.Get("esn_reservoir_size").Int()
	return n
}

// declareSize edits the configuration, as the people who look after the server do.
func declareSize(dir string, n int) error {
	file := filepath.Join(dir, "production.yaml")
	if err := os.WriteFile(file+".new", fmt.Appendf(nil, "environment: production\nparameters: {esn_reservoir_size: %d}\n", n), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file) // so that nobody reads half of it
}

// noMetrics counts nothing. The agent's own, for Prometheus, are in cmd/agent/status.
type noMetrics struct{}

func (noMetrics) Outcome(record.Outcome)      {}
func (noMetrics) ValidationFailures([]string) {}
func (noMetrics) Rollback(string)             {}
func (noMetrics) Phase(string, time.Duration) {}
func (noMetrics) StageFailure(string)         {}
func (noMetrics) Drift()                      {}
func (noMetrics) PolicyRefusal()              {}
func (noMetrics) Success(string)              {}
