//go:build race

package gitstore

const raceDetector = true
