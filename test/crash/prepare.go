//go:build linux

package main

import (
	"context"
	"fmt"

	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// What the prepared history holds: packs, one less than are joined into one,
// and so many records besides that they are worth another.
const (
	preparedPacks  = 7
	recordsOfAPack = 70
)

// prepare writes the history that packingStory begins with. Each Open packs
// anew, once there is enough.
func prepare(dir string) error {
	for pack := range preparedPacks + 1 {
		if err := prepareRecords(dir, pack*recordsOfAPack, pack < preparedPacks); err != nil {
			return fmt.Errorf("prepare a history: %w", err)
		}
	}
	return nil
}

func prepareRecords(dir string, from int, pack bool) error {
	ctx := context.Background()
	s, _, err := gitstore.Open(ctx, gitstore.Options{Dir: dir, Environment: environment, Instance: instance})
	if err != nil {
		return err
	}
	for n := range recordsOfAPack {
		p := schema.Default().For(environment).Defaults().With(ttlName, schema.Int(1000+from+n))
		if _, err := s.Commit(ctx, record.Record{Kind: record.KindChange, Source: record.Source{Kind: "file"}, Config: p, RollbackPoint: true}); err != nil {
			return err
		}
	}
	if err := s.Confirm(ctx); err != nil {
		return err
	}
	if pack {
		s.Prepare() // begins to pack, and Close waits for it
	}
	return s.Close()
}
