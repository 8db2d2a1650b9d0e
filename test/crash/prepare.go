//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

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

// prepare writes the history that packingStory begins with. It is copied while the
// store is open, for Close would pack the rest.
func prepare(dir string) error {
	made := dir + ".made"
	for pack := range preparedPacks + 1 {
		if err := prepareRecords(made, pack*recordsOfAPack, func() error {
			if pack < preparedPacks {
				return nil // Close packs them
			}
			return errors.Join(os.CopyFS(dir, os.DirFS(made)), os.Chmod(dir, 0o700))
		}); err != nil {
			return fmt.Errorf("prepare a history: %w", err)
		}
	}
	return nil
}

func prepareRecords(dir string, from int, then func() error) error {
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
	return errors.Join(s.Confirm(ctx), then(), s.Close())
}
