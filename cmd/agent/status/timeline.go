package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A timeline is a parameter's applied values over the newest records, as an SVG and as a
// table. Lengths are in units of the SVG.
type timeline struct {
	Name, Label   string
	Width, Height int
	Line          string // points of a polyline
	Grid          []timelineText
	Marks         []timelineText
	Rows          []timelineRow // newest first

	Left, Right, Bottom int
	First, Last         string // the times at both ends
}

type timelineText struct {
	X, Y              int
	Text, Tone, Title string
}

type timelineRow struct{ When, Value, Outcome, Record string }

const (
	timelineWidth, timelineHeight = 800, 96
	timelineLeft                  = 70 // of the values' names
	timelineMargin                = 14
	timelineFoot                  = 18 // of the times
)

// timelines returns that of each parameter that has had more than one value.
func timelines(rules *schema.Rules, rows []record.Row, now time.Time) (all []timeline) {
	if len(rows) == 0 {
		return nil
	}
	begin := rows[len(rows)-1].Timestamp
	span := max(record.Unix(now)-begin, 1)
	x := func(unix float64) int {
		return timelineLeft + int((timelineWidth-timelineLeft-timelineMargin)*min(max((unix-begin)/span, 0), 1))
	}
	for _, name := range rules.Names() {
		var values []schema.Value
		for i := range rows {
			if v := rows[i].Config.Get(name); !v.IsZero() && !slices.ContainsFunc(values, v.Equal) {
				values = append(values, v)
			}
		}
		if len(values) < 2 {
			continue
		}
		y := scale(values)
		t := timeline{
			Name: name, Width: timelineWidth, Height: timelineHeight + timelineFoot,
			Left: timelineLeft, Right: timelineWidth - timelineMargin, Bottom: timelineHeight + timelineFoot - 5,
			First: moment(begin), Last: moment(record.Unix(now)),
		}
		var points []string
		var last schema.Value
		for i := len(rows) - 1; i >= 0; i-- {
			row := &rows[i]
			v := row.Config.Get(name)
			if v.IsZero() {
				continue
			}
			at, level := x(row.Timestamp), y(v)
			switch {
			case row.Outcome == record.Rejected && !v.Equal(last):
				t.Marks = append(t.Marks, timelineText{at, level + 4, "✕", "bad", fmt.Sprintf("%v rejected, %s", v, moment(row.Timestamp))})
			case row.Outcome != record.Applied || v.Equal(last):
				continue
			default:
				if !last.IsZero() {
					points = append(points, fmt.Sprintf("%d,%d", at, y(last)))
				}
				points = append(points, fmt.Sprintf("%d,%d", at, level))
				if last = v; row.Kind == record.KindRollback {
					t.Marks = append(t.Marks, timelineText{at, level + 4, "◆", "busy", fmt.Sprintf("rolled back to %v, %s", v, moment(row.Timestamp))})
				}
			}
			t.Rows = append(t.Rows, timelineRow{moment(row.Timestamp), Plain(v.String()), string(row.Kind) + " " + string(row.Outcome), row.ID})
		}
		if last.IsZero() {
			continue
		}
		points = append(points, fmt.Sprintf("%d,%d", timelineWidth-timelineMargin, y(last)))
		t.Line = strings.Join(points, " ")
		for _, v := range []schema.Value{slices.MinFunc(values, byLevel(y)), slices.MaxFunc(values, byLevel(y))} {
			t.Grid = append(t.Grid, timelineText{Y: y(v) + 4, Text: Plain(v.String())})
		}
		slices.Reverse(t.Rows)
		t.Label = Plain(fmt.Sprintf("%s: %v now, %d values or attempts since %s", name, last, len(t.Rows), moment(begin)))
		all = append(all, t)
	}
	return all
}

func byLevel(y func(schema.Value) int) func(a, b schema.Value) int {
	return func(a, b schema.Value) int { return cmp.Compare(y(a), y(b)) }
}

// scale returns where values stand: numbers to scale, others in the order in which they
// came.
func scale(values []schema.Value) func(schema.Value) int {
	height := float64(timelineHeight - 2*timelineMargin)
	level := func(v schema.Value) float64 {
		return float64(slices.IndexFunc(values, v.Equal))
	}
	if _, isNumber := values[0].Float(); isNumber {
		level = func(v schema.Value) float64 { f, _ := v.Float(); return f }
	}
	low, high := level(values[0]), level(values[0])
	for _, v := range values {
		low, high = min(low, level(v)), max(high, level(v))
	}
	return func(v schema.Value) int {
		return timelineMargin + int(height*(high-level(v))/max(high-low, 1e-300))
	}
}
