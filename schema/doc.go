// Package schema turns bytes into Parameters, or into Violations that say where
// and what to do. It imports nothing of ours but schema/problem.
//
// A Schema is a CUE file: dtesn.cue, embedded, or one of the operators (Open). It
// declares the parameters, the rules between them, and the environments. No Go
// code names a parameter. Schema.For gives the Rules of an environment;
// Rules.Load turns files into a Configuration:
//
//  1. strict.go: bytes to YAML nodes, without what this format refuses of YAML.
//  2. decode.go: nodes to layers, by the keys that each kind of file may have.
//  3. check.go: one value, in whichever file it stands, overridden or not.
//  4. resolve.go: the layers to what they give together: base.yaml, the templates
//     in the order of extends, the environment's parameters, the experiments this
//     instance is in. Then the rules are checked.
//
// The violations of all steps come back together. What follows only from another
// violation is left out: while a layer cannot be read in full, no parameter is
// called missing and no rule broken.
//
// CUE (cue.go) is asked about rules only. Ranges and lists of values are read
// once, because messages, editors and the JSON Schema need them too.
package schema
