package schema

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// What a Plan does to an environment.
const (
	PlanUnchanged = "unchanged"
	PlanChanged   = "changed"
	PlanAdded     = "added"
	PlanRemoved   = "removed"
	PlanInvalid   = "invalid"
)

// A Plan is what comes of an environment when one configuration takes the place
// of another.
type Plan struct {
	Name        Environment         `json:"name"`
	Status      string              `json:"status"`
	Note        string              `json:"note,omitempty"` // what could not be compared, and why
	Changes     []PlannedChange     `json:"changes"`
	Experiments []PlannedExperiment `json:"experiments"`
	Memory      PlannedMemory       `json:"memory_bytes"`
	Policy      []Denial            `json:"policy"`     // the rules of a policy that deny it
	Violations  []Violation         `json:"violations"` // of the new configuration

	// Now is the new configuration, outside of experiments unless the plan is of one
	// instance; nil if it is not valid.
	Now *Configuration `json:"-"`

	proposals       []Proposal
	violationsTotal int         // Violations has the first of them
	before          []Violation // of the old configuration
	instance        string      // of PlanInstance, else ""
}

// A PlannedChange is one parameter that changes, and the place that says so.
type PlannedChange struct {
	Parameter string `json:"parameter"`
	Old       Value  `json:"old"`
	New       Value  `json:"new"`
	Apply     string `json:"apply"`
	File      string `json:"file"` // "" for the default of the schema
	Line      int    `json:"line"`
}

// A PlannedExperiment is an experiment that is, or was, part of an environment.
type PlannedExperiment struct {
	Name    string `json:"name"`
	Percent int    `json:"percent"` // 0 if it ends
	Was     int    `json:"was"`
	// Instances are those of the given names that will be in the cohort; Joining and
	// Leaving those that come and go.
	Instances []string `json:"instances"`
	Joining   []string `json:"joining"`
	Leaving   []string `json:"leaving"`
	// Sets is what it sets, with the value that it set before.
	Sets []PlannedChange `json:"sets"`
	// Changed is whether its share changes, or what it sets.
	Changed bool `json:"-"`
}

// PlannedMemory is about how many bytes a server takes, outside of experiments; nil
// where that is unknown.
type PlannedMemory struct {
	Old   *int64 `json:"old"`
	New   *int64 `json:"new"`
	Limit *int64 `json:"limit"`
}

// Sets returns what the experiment c.Experiments[i] sets.
func (c *Configuration) Sets(i int) Parameters { return c.experiments[i].parameters() }

// Plan compares the configurations of two Inputs; nil stands for an environment that
// does not exist. Instances are names whose place in experiments is of interest.
func (r *Rules) Plan(from, to *Input, instances []string) Plan {
	p := r.newPlan()
	var old, now *Configuration
	if from != nil {
		var violations *Violations
		if old, violations = r.Review(*from); violations != nil {
			p.before = violations.List
			p.Note = fmt.Sprintf("the old values are unknown: %s is not valid there", violations.List[0].Position)
		}
	}
	if to != nil {
		now = p.load(r.Review(*to))
	}
	switch {
	case to == nil:
		p.Status, p.Note = PlanRemoved, ""
		if old != nil {
			now = &Configuration{} // so that the old values are shown
		}
	case now == nil:
		return p
	case from == nil:
		p.Status = PlanAdded
	}
	if now == nil {
		return p
	}
	if old == nil {
		old = &Configuration{}
	}
	p.compare(r, old, now)
	for _, e := range now.experiments {
		i := slices.IndexFunc(old.experiments, func(o experiment) bool { return o.label == e.label })
		before := experiment{label: e.label}
		if i >= 0 {
			before = old.experiments[i]
		}
		p.Experiments = append(p.Experiments, r.planExperiment(before, e, instances))
	}
	for _, o := range old.experiments {
		if !slices.ContainsFunc(now.experiments, func(e experiment) bool { return o.label == e.label }) {
			p.Experiments = append(p.Experiments, r.planExperiment(o, experiment{label: o.label}, instances))
		}
	}
	changed := slices.ContainsFunc(p.Experiments, func(e PlannedExperiment) bool { return e.Changed })
	if p.Status == PlanUnchanged && (changed || p.Note != "") {
		p.Status = PlanChanged
	}
	if to != nil && p.Status != PlanUnchanged {
		p.propose(r, old, now, p.Status != PlanAdded && p.Note == "")
	}
	return p
}

// PlanInstance compares what an instance runs with what an Input gives it; was are
// its experiments so far.
func (r *Rules) PlanInstance(runs Parameters, was []Membership, to *Input) Plan {
	p := r.newPlan()
	if to == nil {
		p.Status = PlanRemoved
		return p
	}
	p.instance = to.Instance
	now := p.load(r.Load(*to))
	if now == nil {
		return p
	}
	declared := func(name string) bool { return !now.Parameters.Get(name).IsZero() } // the server keeps the rest
	runs = runs.Select(declared)
	p.compare(r, &Configuration{Parameters: runs}, now)
	for i, m := range now.Experiments {
		e := PlannedExperiment{Name: m.Name, Percent: m.Percent, Instances: []string{}, Joining: []string{}, Leaving: []string{}}
		e.Sets = r.plannedSets(nil, now.experiments[i].layer)
		j := slices.IndexFunc(was, func(w Membership) bool { return w.Name == m.Name })
		before := j >= 0 && was[j].Member
		if j >= 0 {
			e.Was = was[j].Percent
		}
		e.addInstance(to.Instance, before, m.Member)
		e.Changed = e.Was != e.Percent || len(e.Joining)+len(e.Leaving) > 0
		p.Experiments = append(p.Experiments, e)
	}
	if len(p.Changes) > 0 || ExperimentsChanged(was, now.Experiments) {
		p.proposals = []Proposal{r.Propose(&runs, now.Parameters, CompareExperiments(was, now.Experiments))}
	}
	return p
}

func (r *Rules) newPlan() Plan {
	return Plan{
		Name: r.environment, Status: PlanUnchanged, Policy: []Denial{},
		Changes: []PlannedChange{}, Experiments: []PlannedExperiment{}, Violations: []Violation{},
	}
}

// load records the violations of the new configuration.
func (p *Plan) load(c *Configuration, v *Violations) *Configuration {
	if v != nil {
		p.Status, p.Violations, p.violationsTotal = PlanInvalid, v.List, v.Total
	}
	return c
}

// IsOld reports whether a violation was there before.
func (p *Plan) IsOld(v Violation) bool { return slices.ContainsFunc(p.before, v.SameAs) }

// Rebuilds reports whether engines of the cohort rebuild.
func (p *PlannedExperiment) Rebuilds() bool {
	return p.Changed && slices.ContainsFunc(p.Sets, func(c PlannedChange) bool {
		return c.Apply == ApplyRebuild && (p.Was != p.Percent || !c.Old.Equal(c.New))
	})
}

// compare adds how the parameters change.
func (p *Plan) compare(r *Rules, old, now *Configuration) {
	p.Now = now
	for _, c := range r.Diff(old.Parameters, now.Parameters) {
		origin, ok := now.Provenance[c.Parameter]
		if !ok {
			origin = old.Provenance[c.Parameter]
		}
		p.Changes = append(p.Changes, PlannedChange{c.Parameter, c.Old, c.New, cmp.Or(c.Apply, ApplyHot), origin.File, origin.Line})
	}
	if len(p.Changes) > 0 && p.Status == PlanUnchanged {
		p.Status = PlanChanged
	}
	p.Memory.Old = r.memoryBytes(old)
	p.Memory.New = r.memoryBytes(now)
}

// memoryBytes returns MemoryBytes of a configuration, nil if it is unknown.
func (r *Rules) memoryBytes(c *Configuration) *int64 {
	if n, ok := r.MemoryBytes(c.Parameters); ok {
		return &n
	}
	return nil
}

func (r *Rules) planExperiment(before, e experiment, instances []string) PlannedExperiment {
	p := PlannedExperiment{Name: e.label, Percent: e.percent, Was: before.percent, Instances: []string{}, Joining: []string{}, Leaving: []string{}}
	for _, name := range instances {
		p.addInstance(name, InCohort(e.label, name, before.percent), InCohort(e.label, name, e.percent))
	}
	p.Sets = r.plannedSets(before.layer, e.layer)
	differs := func(c PlannedChange) bool { return !c.Old.Equal(c.New) }
	p.Changed = e.percent != before.percent || e.percent > 0 && slices.ContainsFunc(p.Sets, differs)
	return p
}

// addInstance adds an instance to the lists, by whether it was and will be in the cohort.
func (p *PlannedExperiment) addInstance(instance string, was, is bool) {
	if is {
		p.Instances = append(p.Instances, instance)
	}
	switch {
	case is && !was:
		p.Joining = append(p.Joining, instance)
	case was && !is:
		p.Leaving = append(p.Leaving, instance)
	}
}

// plannedSets lists what two states of an experiment set, sorted by name.
func (r *Rules) plannedSets(before, now layer) []PlannedChange {
	sets := []PlannedChange{}
	for _, name := range r.names {
		if !before.sets(name) && !now.sets(name) {
			continue
		}
		at := now[name].at
		if !now.sets(name) {
			at = before[name].at
		}
		sets = append(sets, PlannedChange{name, before[name].value, now[name].value, r.Parameter(name).Apply, at.File, at.Line})
	}
	return sets
}

// propose adds the changes that a policy judges: outside of experiments, and for each
// experiment those of the instances that join, stay or leave. With 512 outside of an
// experiment that set 1024 and now sets 2048, instances that join go from 512 to 2048,
// those that stay from 1024 to 2048, and those that leave from 1024 to 512.
func (p *Plan) propose(r *Rules, old, now *Configuration, isKnown bool) {
	experiments := old.Experiments
	if !isKnown {
		experiments = now.Experiments
	}
	shares := CompareExperiments(experiments, now.Experiments)
	add := func(of string, before, after layer) {
		var was *Parameters
		if isKnown {
			was = new(old.Parameters.overlaid(before))
		}
		proposal := r.Propose(was, now.Parameters.overlaid(after), shares)
		proposal.Of = of
		p.proposals = append(p.proposals, proposal)
	}
	add("", nil, nil)
	for _, e := range p.Experiments {
		before, after := old.experiment(e.Name), now.experiment(e.Name)
		if e.Percent > e.Was {
			add(e.Name, nil, after)
		}
		if e.Percent > 0 && e.Was > 0 {
			add(e.Name, before, after)
		}
		if e.Percent < e.Was {
			add(e.Name, before, nil)
		}
	}
}

// experiment returns what the experiment of that name sets.
func (c *Configuration) experiment(name string) layer {
	for _, e := range c.experiments {
		if e.label == name {
			return e.layer
		}
	}
	return nil
}

// overlaid returns p with the settings of a layer.
func (p Parameters) overlaid(l layer) Parameters {
	for name, s := range l {
		p = p.With(name, s.value)
	}
	return p
}

// Proposals returns the changes that a policy judges.
func (p *Plan) Proposals() []Proposal { return p.proposals }

// Deny adds what a policy denies of a proposal.
func (p *Plan) Deny(of Proposal, denied []Denial) {
	for _, d := range denied {
		same := func(o Denial) bool { return o.Name == d.Name }
		if slices.ContainsFunc(p.Policy, same) {
			continue
		}
		if of.Of != "" {
			d.Message += ", in the experiment " + of.Of
		}
		p.Policy = append(p.Policy, d)
	}
}

// Summary returns on one line what changes in the environment and for its engines. show
// formats the name of an experiment.
func (p *Plan) Summary(show func(name string) string) string {
	switch p.Status {
	case PlanInvalid:
		return p.invalidSummary()
	case PlanAdded:
		return fmt.Sprintf("new, with %s", count(p.Now.Parameters.Len(), "parameter"))
	case PlanRemoved:
		text := "removed; its engines keep what they run, and its agents report it as invalid"
		if p.Note != "" {
			text += "; " + show(p.Note)
		}
		return text
	case PlanUnchanged:
		return "nothing changes"
	}
	if p.Note != "" {
		return show(p.Note)
	}
	var parts []string
	if n := len(p.Changes); n > 0 {
		verb := "change"
		if n == 1 {
			verb = "changes"
		}
		parts = append(parts, fmt.Sprintf("%d of %s %s", n, count(p.Now.Parameters.Len(), "parameter"), verb), p.rebuildEffect())
	}
	return strings.Join(append(parts, p.experimentsSummary(show)...), "; ")
}

func (p *Plan) invalidSummary() string {
	old := 0
	for _, v := range p.Violations {
		if p.IsOld(v) {
			old++
		}
	}
	text := count(p.violationsTotal, "violation")
	switch old {
	case 0:
		return "not valid, nothing is applied: " + text
	case len(p.Violations):
		return "not valid, as it was before: " + text
	}
	return fmt.Sprintf("not valid, nothing is applied: %s, %d of them new", text, p.violationsTotal-old)
}

func rebuilds(changes []PlannedChange) bool {
	return slices.ContainsFunc(changes, func(c PlannedChange) bool { return c.Apply == ApplyRebuild })
}

// rebuildEffect returns which engines rebuild for the changes outside of experiments.
func (p *Plan) rebuildEffect() string {
	if p.instance != "" {
		if rebuilds(p.Changes) {
			return "the engine rebuilds once"
		}
		return "no engine rebuilds"
	}
	// An engine in an experiment that sets such a parameter does not follow the changes.
	differs := slices.ContainsFunc(p.Experiments, func(e PlannedExperiment) bool { return rebuilds(e.Sets) })
	switch {
	case rebuilds(p.Changes) && differs:
		return "engines outside of experiments rebuild once"
	case rebuilds(p.Changes):
		return "each engine rebuilds once"
	case slices.ContainsFunc(p.Experiments, func(e PlannedExperiment) bool { return e.Rebuilds() }):
		return "engines outside of experiments do not rebuild"
	}
	return "no engine rebuilds"
}

// experimentsSummary returns how each experiment changes.
func (p *Plan) experimentsSummary(show func(name string) string) (parts []string) {
	const most = 3
	changed := 0
	for _, e := range p.Experiments {
		if !e.Changed {
			continue
		}
		if changed++; changed > most {
			continue
		}
		text := "experiment " + show(e.Name) + " " + e.share()
		if p.instance == "" && e.Rebuilds() {
			text += ", and its engines rebuild"
		}
		parts = append(parts, text)
	}
	if changed > most {
		parts = append(parts, count(changed-most, "more experiment"))
	}
	return parts
}

// share returns how the share of an experiment changes.
func (p *PlannedExperiment) share() string {
	switch {
	case p.Was == p.Percent:
		return fmt.Sprintf("sets other values for %d %%", p.Percent)
	case p.Percent == 0:
		return fmt.Sprintf("ends for %d %%", p.Was)
	case p.Was == 0:
		return fmt.Sprintf("begins for %d %%", p.Percent)
	}
	return fmt.Sprintf("goes from %d %% to %d %%", p.Was, p.Percent)
}

// count returns "1 violation" or "2 violations".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
