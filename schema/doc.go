// Package schema turns bytes into Parameters, or into Violations that say
// where and what to do. It also holds the words that the other packages share:
// Document, Parameters, Provenance, Violation, Change, Snapshot, Outcome.
//
// # What is valid
//
// dtesn.cue, embedded, is the only place that says it: the type, range,
// default, criticality and description of each parameter, the rules between
// parameters with their messages, and the environments. Critical, Defaults,
// Info, Environments, JSONSchema and Markdown are read from it. A new rule
// between parameters is a new entry of #rules there and no Go code.
//
// # Loading
//
//	c, violations := schema.Load(doc, instance)
//
// takes a Document through these steps; the violations of all of them come
// back together, in order of file, line and column:
//
//  1. Bytes: at most 1 MiB of UTF-8 without control characters, and a bound on
//     structure, since the YAML parser spends up to 600 bytes on a node.
//  2. YAML to nodes, one document in a file. Nodes keep line and column, and
//     nothing is expanded at this point.
//  3. A walk over the nodes refuses what YAML allows and this format does not:
//     anchors, aliases, merge keys, tags, nulls, duplicate keys. A second one
//     reads the known keys. An integer is plain decimal digits, a bool is true
//     or false: 0777, 1_000, 5.0 and yes mean different things to different
//     readers, so none of them is taken.
//  4. Each value is judged by CUE, in whichever file it stands, overridden or
//     not, and mapped back to its node: CUE's own error positions are the
//     schema's.
//  5. koanf merges the layers: base.yaml, the templates in the order of
//     extends, the environment's parameters, the experiments this instance is
//     in. The topmost node of each parameter is its provenance.
//  6. CUE judges the rules between parameters: on what the layers give, with
//     each experiment alone, and with all the experiments of this instance.
//
// What follows only from another violation is not reported: while a layer
// cannot be read in full, no parameter is called missing and no rule broken.
//
// Check does steps 4 and 6 for values that stand in no file. Both compile the
// schema into a fresh CUE context each time, because a context that is kept
// grows with each value it sees.
//
// # Experiments
//
// An experiment gives its parameters to the instances of its cohort, which
// InCohort decides from the names of the experiment and the instance alone: no
// instance needs to know another. All experiments are checked on all
// instances, so that a bad one is found before it meets its cohort.
package schema
