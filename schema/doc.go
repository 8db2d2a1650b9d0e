// Package schema turns bytes into Parameters, or into Violations that say where
// and what to do. It imports nothing of ours but schema/problem.
//
// A Schema is a CUE file: dtesn.cue, embedded, or one of the operators (Open). It
// declares the parameters, the rules between them, and the environments. Nothing
// else says what is valid, and no Go code names a parameter. Schema.For gives the
// Rules of an environment; Rules.Load turns files into a Configuration:
//
//  1. strict.go: bytes to YAML nodes. Nodes keep line and column. What YAML allows
//     and this format does not is refused: anchors, aliases, merge keys, tags,
//     nulls, duplicate keys.
//  2. decode.go: nodes to layers, by the keys that each kind of file may have.
//  3. check.go: one literal to one Value. Each value is checked in whichever file
//     it stands, overridden or not. There is one spelling of a value.
//  4. resolve.go: the layers to what they give together: base.yaml, the templates
//     in the order of extends, the environment's parameters, the experiments this
//     instance is in. The topmost layer of a parameter is its Provenance. Then the
//     rules are checked: on what the layers give, with each experiment alone, and
//     with all the experiments of this instance (Review: of any instance).
//
// The violations of all steps come back together, in order of file, line and
// column. What follows only from another violation is left out: while a layer
// cannot be read in full, no parameter is called missing and no rule broken.
//
// The other files:
//
//   - schema.go: what a Schema declares, and what it answers.
//   - cue.go: reading a schema file, and evaluating its rules. CUE is asked about
//     rules only. Ranges and lists of values are read once, because messages,
//     editors and the JSON Schema need them too.
//   - values.go: Value, Parameters and Change. Parameters of another schema, as in
//     an old record, are values by name: Rules.Known and Rules.Complete say what
//     they mean under this one.
//   - files.go: the files of a configuration and their limits. The limits bound
//     time and memory, so that nothing else has to.
//   - violations.go: Violation, foreign text in messages, and "did you mean".
//   - export.go: the JSON Schema and the table of parameters.
//
// Rules.Check does steps 3 and 4 for values that stand in no file.
package schema
