package status

import (
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/hooks"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The closed label sets; every series exists from the start, at 0, so that a
// rate over the first failure is a rate.
var (
	phases = []string{"load", "commit", "engine", "confirm", "total"}
	stages = []string{"source", "load", "commit", "send", "read", "confirm", "revert", "assert"}
	causes = []string{"operator", "engine", "probation", "hook"}
	loops  = []string{"source", "engine", "transaction"}
)

// documentLabel stands for what is wrong with a Document as a whole.
const documentLabel = "_document"

// Metrics are the counters of the transaction, and the gauges that a scrape
// reads off the status. It is an apply.Metrics.
type Metrics struct {
	rules                                  *schema.Rules
	registry                               *prometheus.Registry
	updates, invalid, rollbacks, stageErrs *prometheus.CounterVec
	durations                              *prometheus.HistogramVec
	drifts, denials                        prometheus.Counter
	success                                *prometheus.GaugeVec

	// DroppedLines counts the lines of the log that its reader did not take.
	DroppedLines *atomic.Int64
	// DroppedEvents counts the events that the disk did not take; nil is 0.
	DroppedEvents func() int64
}

// NewMetrics makes all series of one agent.
func NewMetrics(version string, rules *schema.Rules) *Metrics {
	counter := func(name, help string, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &Metrics{
		rules: rules, DroppedLines: new(atomic.Int64),
		registry:  prometheus.NewRegistry(),
		updates:   counter("dtesn_agent_updates_total", "Attempts to bring a document to the engine, by outcome.", "outcome"),
		invalid:   counter("dtesn_agent_validation_failures_total", "Invalid documents, by the parameter concerned.", "parameter"),
		rollbacks: counter("dtesn_agent_rollbacks_total", "Returns to an earlier state, by cause.", "cause"),
		stageErrs: counter("dtesn_agent_stage_failures_total", "Faults, by the stage that failed.", "stage"),
		denials:   prometheus.NewCounter(prometheus.CounterOpts{Name: "dtesn_agent_policy_refusals_total", Help: "Documents that the policy denied, or could not judge."}),
		drifts:    prometheus.NewCounter(prometheus.CounterOpts{Name: "dtesn_agent_drift_total", Help: "Times the engine was found changed past the agent."}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dtesn_agent_update_duration_seconds", Help: "How long an update took, by phase.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"phase"}),
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "dtesn_agent_last_success_timestamp_seconds", Help: "When a loop last did its work, in Unix seconds.",
		}, []string{"loop"}),
	}
	for _, o := range record.Outcomes() {
		m.updates.WithLabelValues(string(o))
	}
	for _, p := range append(rules.Names(), documentLabel) {
		m.invalid.WithLabelValues(p)
	}
	for _, c := range causes {
		m.rollbacks.WithLabelValues(c)
	}
	for _, s := range stages {
		m.stageErrs.WithLabelValues(s)
	}
	for _, p := range phases {
		m.durations.WithLabelValues(p)
	}
	for _, l := range loops {
		m.success.WithLabelValues(l)
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "dtesn_agent_info", Help: "1, with what this agent is.",
		ConstLabels: prometheus.Labels{"version": version, "environment": string(rules.Environment()), "schema": rules.Schema().Digest()},
	})
	info.Set(1)
	start := prometheus.NewGauge(prometheus.GaugeOpts{ // process_start_time_seconds needs /proc/stat, which a unit with ProcSubset=pid lacks
		Name: "dtesn_agent_start_time_seconds", Help: "When this process began, in Unix seconds.",
	})
	start.SetToCurrentTime()
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "dtesn_agent_log_lines_dropped_total", Help: "Lines of the log that its reader did not take.",
	}, func() float64 { return float64(m.DroppedLines.Load()) }))
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "dtesn_agent_events_dropped_total", Help: "Events that the log of events lacks, because the disk did not take them.",
	}, func() float64 {
		if m.DroppedEvents == nil {
			return 0
		}
		return float64(m.DroppedEvents())
	}))
	m.registry.MustRegister(m.updates, m.invalid, m.rollbacks, m.stageErrs, m.drifts, m.denials, m.durations, m.success, info, start)
	return m
}

// Outcome counts an attempt that came to its outcome.
func (m *Metrics) Outcome(o record.Outcome) { m.updates.WithLabelValues(string(o)).Inc() }

// ValidationFailures counts an invalid Document for each parameter concerned.
func (m *Metrics) ValidationFailures(parameters []string) {
	for _, p := range parameters {
		if !m.rules.Has(p) {
			p = documentLabel
		}
		m.invalid.WithLabelValues(p).Inc()
	}
}

// Rollback counts a return to an earlier state.
func (m *Metrics) Rollback(cause string) { m.rollbacks.WithLabelValues(cause).Inc() }

// Phase observes how long a phase took.
func (m *Metrics) Phase(phase string, d time.Duration) {
	m.durations.WithLabelValues(phase).Observe(d.Seconds())
}

// StageFailure counts a fault.
func (m *Metrics) StageFailure(stage string) { m.stageErrs.WithLabelValues(stage).Inc() }

// Drift counts a drift that was found.
func (m *Metrics) Drift() { m.drifts.Inc() }

// PolicyRefusal counts a document that the policy refused.
func (m *Metrics) PolicyRefusal() { m.denials.Inc() }

// Success stamps a loop.
func (m *Metrics) Success(loop string) { m.success.WithLabelValues(loop).SetToCurrentTime() }

// Restore stamps the loops with the time at which an earlier process applied something, in
// Unix seconds: then each had done its work.
func (m *Metrics) Restore(at float64) {
	for _, l := range loops {
		m.success.WithLabelValues(l).Set(at)
	}
}

// handler serves the series. One answer has some 6 KB, and what compresses it takes a
// hundred times that.
func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true})
}

// show registers the gauges that a scrape reads off the status.
func (m *Metrics) show(source Source, list func() []hooks.Status) {
	m.registry.MustRegister(&gauges{source, m.rules, list})
}

// gauges is a prometheus.Collector over the status.
type gauges struct {
	source Source
	rules  *schema.Rules
	hooks  func() []hooks.Status // nil if there can be none
}

var (
	gaugeInSync    = prometheus.NewDesc("dtesn_agent_in_sync", "1 while the engine runs what the source declares.", nil, nil)
	gaugeReady     = prometheus.NewDesc("dtesn_agent_ready", "1 while /readyz is 200.", nil, nil)
	gaugeHeld      = prometheus.NewDesc("dtesn_agent_held", "Entries that are held, by who rejected them or rolled back; a pause counts as one.", []string{"cause"}, nil)
	gaugeRunning   = prometheus.NewDesc("dtesn_agent_running_info", "1, with the record that the engine was last read to run, and the revision that declared it.", []string{"snapshot", "revision"}, nil)
	gaugeEngineUp  = prometheus.NewDesc("dtesn_agent_engine_up", "1 while the engine answers.", nil, nil)
	gaugeSnapshots = prometheus.NewDesc("dtesn_agent_active_snapshots", "Applied states within the default page.", nil, nil)
	gaugeLast      = prometheus.NewDesc("dtesn_agent_last_apply_successful", "1 if the last attempt was applied or changed nothing.", nil, nil)
	gaugeParameter = prometheus.NewDesc("dtesn_agent_parameter", "Number that the engine was last read to run; a bool is 0 or 1.", []string{"parameter"}, nil)
	gaugePaused    = prometheus.NewDesc("dtesn_agent_paused", "1 while nothing is tried until agent resume.", nil, nil)
	gaugeWritable  = prometheus.NewDesc("dtesn_agent_state_writable", "1 while the state directory takes records.", nil, nil)
	gaugeFresh     = prometheus.NewDesc("dtesn_agent_source_fresh", "1 while the source was read as lately as its settings want.", nil, nil)
	gaugeFailing   = prometheus.NewDesc("dtesn_agent_hook_failing", "1 while the receiver of a hook takes nothing, or is switched off.", []string{"hook"}, nil)
	gaugeLag       = prometheus.NewDesc("dtesn_agent_hook_waiting_events", "Events that a hook was not told yet.", []string{"hook"}, nil)
	gaugeLost      = prometheus.NewDesc("dtesn_agent_hook_dropped_events_total", "Events that a receiver did not want, or did not take for three days.", []string{"hook"}, nil)
	gaugePolicy    = prometheus.NewDesc("dtesn_agent_policy_usable", "1 while the policy can be used; else every change is refused.", nil, nil)
	gaugeText      = prometheus.NewDesc("dtesn_agent_parameter_info", "1, with the text that the engine was last read to run.", []string{"parameter", "value"}, nil)
)

// Describe is prometheus.Collector's.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{gaugeInSync, gaugeReady, gaugeHeld, gaugeRunning, gaugeEngineUp, gaugeSnapshots, gaugeLast, gaugeParameter, gaugeText, gaugePaused, gaugeWritable, gaugeFresh, gaugeFailing, gaugeLag, gaugeLost, gaugePolicy} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	s := g.source.Status()
	put := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	put(gaugeInSync, number(s.InSync))
	put(gaugeReady, number(s.Ready))
	held := map[string]int{}
	if h := s.Held; h != nil {
		for _, e := range h.Entries {
			held[e.By]++
		}
		if h.Paused {
			held[h.By]++
		}
	}
	for _, cause := range append(causes, "agent") {
		put(gaugeHeld, float64(held[cause]), cause)
	}
	if r := s.Running; r.SnapshotID != "" {
		put(gaugeRunning, 1, r.SnapshotID, r.SourceRevision)
	}
	put(gaugeEngineUp, number(s.Engine.Reachable))
	put(gaugeSnapshots, float64(s.ActiveSnapshots))
	put(gaugeLast, number(lastApplied(s)))
	put(gaugePaused, number(s.Held != nil && s.Held.Paused))
	checks := s.Checks(time.Now())
	put(gaugeWritable, number(checks.BackupDirectoryWritable && !s.Unrecorded))
	put(gaugeFresh, number(checks.SourceFresh))
	if s.Policy != nil && (s.Policy.Usable || s.Policy.Error != "") { // else it is still loaded
		put(gaugePolicy, number(s.Policy.Usable))
	}
	if g.hooks != nil {
		for _, h := range g.hooks() {
			put(gaugeFailing, number(h.Off || h.FailingAt != 0), h.Name)
			put(gaugeLag, float64(h.Lag), h.Name)
			ch <- prometheus.MustNewConstMetric(gaugeLost, prometheus.CounterValue, float64(h.Dropped), h.Name)
		}
	}
	var runs schema.Parameters
	if s.Current != nil {
		runs = *s.Current
	}
	for _, p := range g.rules.Parameters() {
		v := runs.Get(p.Name)
		if f, ok := v.Float(); ok {
			put(gaugeParameter, f, p.Name)
		}
		if text, ok := v.Text(); ok && slices.Contains(p.Values, text) {
			put(gaugeText, 1, p.Name, text)
		}
	}
}

// lastApplied reports whether the last attempt that came to an outcome went well; before
// this process made one, that of an earlier process.
func lastApplied(s *apply.Status) bool {
	if s.Unrecorded {
		return false
	}
	for _, a := range s.Attempts {
		switch {
		case a.Outcome == record.Applied, a.Outcome == record.Unchanged:
			return true
		case a.Outcome == record.Pending, a.Outcome == record.Superseded && !a.TakenBack():
			continue
		}
		return false
	}
	return s.Applied != nil && s.Applied.Kind != record.KindRevert
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
