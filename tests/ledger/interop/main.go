// Answers, with Go's golang.org/x/mod/sumdb/note and tlog, the questions that xmod.py writes to its standard input:
// which notes open, which proofs hold, and what Go itself signs and proves. One JSON value in, one JSON value out.
//
// x/mod knows keys of type 0x01 only. The cosignatures (0x04) are made and read here after C2SP's tlog-cosignature,
// with Go's own crypto/ed25519.
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type question struct {
	Open []struct {
		Note  []byte   `json:"note"`
		Vkeys []string `json:"vkeys"`
	} `json:"open"`
	Inclusion []struct {
		Leaf  tlog.Hash   `json:"leaf"`
		Index int64       `json:"index"`
		Size  int64       `json:"size"`
		Proof []tlog.Hash `json:"proof"`
		Root  tlog.Hash   `json:"root"`
	} `json:"inclusion"`
	Consistency []struct {
		OldSize int64       `json:"old_size"`
		OldRoot tlog.Hash   `json:"old_root"`
		NewSize int64       `json:"new_size"`
		NewRoot tlog.Hash   `json:"new_root"`
		Proof   []tlog.Hash `json:"proof"`
	} `json:"consistency"`
	Sign []struct {
		Text string   `json:"text"`
		Log  signer   `json:"log"`
		By   []signer `json:"by"`
	} `json:"sign"`
	Trees [][][]byte `json:"trees"`
}

type signer struct {
	Name string `json:"name"`
	Seed []byte `json:"seed"`
	Time uint64 `json:"time"`
}

type answer struct {
	Open        []opened `json:"open"`
	Inclusion   []bool   `json:"inclusion"`
	Consistency []bool   `json:"consistency"`
	Sign        []string `json:"sign"`
	Trees       []tree   `json:"trees"`
}

// opened is nil in Text if the note is refused.
type opened struct {
	Text *string  `json:"text"`
	By   []string `json:"by"`
}

// tree holds the roots of the sizes 1, 2, ...; the proofs of each index; the proofs of each old size from 1.
type tree struct {
	Roots       []tlog.Hash     `json:"roots"`
	Inclusion   [][][]tlog.Hash `json:"inclusion"`
	Consistency [][][]tlog.Hash `json:"consistency"`
}

func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatalf("The question is not the JSON that was expected: %v", err)
	}
	told := answer{[]opened{}, []bool{}, []bool{}, []string{}, []tree{}}
	for _, each := range asked.Open {
		told.Open = append(told.Open, open(each.Note, each.Vkeys))
	}
	for _, each := range asked.Inclusion {
		err := tlog.CheckRecord(each.Proof, each.Size, each.Root, each.Index, each.Leaf)
		told.Inclusion = append(told.Inclusion, err == nil)
	}
	for _, each := range asked.Consistency {
		err := tlog.CheckTree(each.Proof, each.NewSize, each.NewRoot, each.OldSize, each.OldRoot)
		told.Consistency = append(told.Consistency, err == nil)
	}
	for _, each := range asked.Sign {
		signers := []note.Signer{newKey(each.Log, ed25519Note)}
		for _, witness := range each.By {
			signers = append(signers, newKey(witness, ed25519Cosignature))
		}
		signed, err := note.Sign(&note.Note{Text: each.Text}, signers...)
		must(err)
		told.Sign = append(told.Sign, string(signed))
	}
	for _, leaves := range asked.Trees {
		told.Trees = append(told.Trees, grow(leaves))
	}
	must(json.NewEncoder(os.Stdout).Encode(told))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func open(signed []byte, vkeys []string) opened {
	var known []note.Verifier
	for _, vkey := range vkeys {
		verifier, err := newVerifier(vkey)
		must(err)
		known = append(known, verifier)
	}
	read, err := note.Open(signed, note.VerifierList(known...))
	if err != nil {
		return opened{nil, []string{}}
	}
	by := []string{}
	for _, signature := range read.Sigs {
		by = append(by, signature.Name)
	}
	return opened{&read.Text, by}
}

func grow(leaves [][]byte) tree {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	grown := tree{[]tlog.Hash{}, [][][]tlog.Hash{}, [][][]tlog.Hash{}}
	for index, leaf := range leaves {
		added, err := tlog.StoredHashes(int64(index), leaf, reader)
		must(err)
		stored = append(stored, added...)
		size := int64(index) + 1
		root, err := tlog.TreeHash(size, reader)
		must(err)
		grown.Roots = append(grown.Roots, root)
		var inclusion, consistency [][]tlog.Hash
		for n := int64(0); n < size; n++ {
			record, err := tlog.ProveRecord(size, n, reader)
			must(err)
			inclusion = append(inclusion, record)
			older, err := tlog.ProveTree(size, n+1, reader)
			must(err)
			consistency = append(consistency, older)
		}
		grown.Inclusion = append(grown.Inclusion, inclusion)
		grown.Consistency = append(grown.Consistency, consistency)
	}
	return grown
}

const (
	ed25519Note        = 1
	ed25519Cosignature = 4
)

// key is a signer and a verifier of both types.
type key struct {
	name    string
	typed   []byte
	private ed25519.PrivateKey
	time    uint64
}

func newKey(from signer, kind byte) *key {
	private := ed25519.NewKeyFromSeed(from.Seed)
	return &key{from.Name, append([]byte{kind}, private[ed25519.SeedSize:]...), private, from.Time}
}

// newVerifier leaves keys of type 0x01 to x/mod.
func newVerifier(vkey string) (note.Verifier, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a verifier key")
	}
	typed, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(typed) != 1+ed25519.PublicKeySize || typed[0] != ed25519Cosignature {
		return note.NewVerifier(vkey)
	}
	found := &key{name: parts[0], typed: typed}
	if fmt.Sprintf("%08x", found.KeyHash()) != parts[1] {
		return nil, errors.New("a verifier key with another's hash")
	}
	return found, nil
}

func (k *key) Name() string { return k.name }

func (k *key) KeyHash() uint32 {
	sum := sha256.Sum256(append([]byte(k.name+"\n"), k.typed...))
	return binary.BigEndian.Uint32(sum[:])
}

func (k *key) Sign(text []byte) ([]byte, error) {
	if k.typed[0] == ed25519Note {
		return ed25519.Sign(k.private, text), nil
	}
	stamp := make([]byte, 8)
	binary.BigEndian.PutUint64(stamp, k.time)
	return append(stamp, ed25519.Sign(k.private, cosigned(k.time, text))...), nil
}

// Verify holds cosignatures to the bounds of time of tlog-cosignature and tlog-witness.
func (k *key) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	time := binary.BigEndian.Uint64(signature)
	return 0 < time && time < 1<<63 && ed25519.Verify(ed25519.PublicKey(k.typed[1:]), cosigned(time, text), signature[8:])
}

func cosigned(time uint64, text []byte) []byte {
	return append([]byte(fmt.Sprintf("cosignature/v1\ntime %d\n", time)), text...)
}
