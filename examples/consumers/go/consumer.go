// Command consumer follows ticks with XREAD: JSON lines on standard output, a position that
// survives a restart.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"math"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	blockFor = time.Second // also how soon it stops when told
	count    = 100
)

// position is the epoch of each market and the last id read of each stream.
type position struct {
	file   string
	Epochs map[string]string `json:"epochs"`
	Last   map[string]string `json:"last"`
}

func loadPosition(file string) (*position, error) {
	stored := &position{file: file, Epochs: map[string]string{}, Last: map[string]string{}}
	if file == "" {
		return stored, nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return stored, nil
	}
	if err != nil {
		return nil, err
	}
	return stored, json.Unmarshal(data, stored)
}

// store replaces the file as a whole: a reader finds the old position or the new one.
func (p *position) store() error {
	if p.file == "" {
		return nil
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.file+".new", data, 0o666); err != nil {
		return err
	}
	return os.Rename(p.file+".new", p.file)
}

type entry struct {
	id, field string
	value     []byte
}

type read struct {
	stream  string
	entries []entry
}

// consumer reads streams of ticks, or feeds of markets, one batch at a time.
type consumer struct {
	server   redis.Conn
	prefix   string
	codes    map[string]string // stream to its code; a feed has none
	streams  []string
	markets  []string
	position *position
	toldGone map[string]string
}

// next waits for the next entries of any stream, then looks at what was passed over.
func (c *consumer) next(block time.Duration) ([]read, error) {
	args := redis.Args{}.Add("COUNT", count, "BLOCK", block.Milliseconds(), "STREAMS").AddFlat(c.streams)
	for _, stream := range c.streams {
		last, known := c.position.Last[stream]
		if !known {
			last = "0-0"
		}
		args = args.Add(last)
	}
	answer, err := redis.Values(c.server.Do("XREAD", args...))
	if errors.Is(err, redis.ErrNil) {
		answer, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	news := make([]read, 0, len(answer))
	streams := make([]string, 0, len(answer))
	for _, one := range answer {
		stream, err := parseRead(one)
		if err != nil {
			return nil, err
		}
		news = append(news, stream)
		streams = append(streams, stream.stream)
	}
	return news, c.check(streams)
}

// parseRead reads [stream, [[id, [field, value]], ...]].
func parseRead(answer any) (read, error) {
	var stream read
	var entries []any
	pair, err := redis.Values(answer, nil)
	if err != nil {
		return stream, err
	}
	if _, err = redis.Scan(pair, &stream.stream, &entries); err != nil {
		return stream, err
	}
	for _, one := range entries {
		entry, err := parseEntry(one)
		if err != nil {
			return stream, err
		}
		stream.entries = append(stream.entries, entry)
	}
	return stream, nil
}

// parseEntry reads [id, [field, value]].
func parseEntry(answer any) (entry, error) {
	var one entry
	var fields []any
	pair, err := redis.Values(answer, nil)
	if err != nil {
		return one, err
	}
	if _, err = redis.Scan(pair, &one.id, &fields); err != nil {
		return one, err
	}
	_, err = redis.Scan(fields, &one.field, &one.value)
	return one, err
}

// check warns of a new epoch and of positions that are gone: XREAD itself says nothing.
//
// Behind a read, for trimming goes from the oldest: what was read last is still there, so nothing
// between it and the news was trimmed.
func (c *consumer) check(streams []string) error {
	var passed []string
	for _, market := range c.markets {
		if err := c.server.Send("GET", fmt.Sprintf("{%s:%s}:epoch", c.prefix, market)); err != nil {
			return err
		}
	}
	for _, stream := range streams {
		if last, known := c.position.Last[stream]; known {
			passed = append(passed, stream)
			if err := c.server.Send("XRANGE", stream, last, "+", "COUNT", 1); err != nil {
				return err
			}
		}
	}
	if err := c.server.Flush(); err != nil {
		return err
	}
	for _, market := range c.markets {
		now, err := redis.String(c.server.Receive())
		if errors.Is(err, redis.ErrNil) {
			continue
		}
		if err != nil {
			return err
		}
		if known := c.position.Epochs[market]; known != "" && known != now {
			log.Printf("warning: %s: new epoch %s after %s: ticks may be lost or told again",
				market, now, known)
		}
		c.position.Epochs[market] = now
	}
	for _, stream := range passed {
		found, err := redis.Values(c.server.Receive())
		if err != nil {
			return err
		}
		first := "nothing"
		if len(found) > 0 {
			one, err := parseEntry(found[0])
			if err != nil {
				return err
			}
			first = one.id
		}
		last := c.position.Last[stream]
		if first == last || c.toldGone[stream] == last {
			continue
		}
		c.toldGone[stream] = last
		log.Printf("warning: %s: position %s is gone, %s follows: ticks may be missing",
			stream, last, first)
	}
	return nil
}

// ticks returns the ticks of an entry; a feed's entry with bars (c1) has none.
func (c *consumer) ticks(stream string, one entry) ([]record, error) {
	code := c.codes[stream]
	if code == "" && one.field != "b1" {
		return nil, nil
	}
	records, err := decode(one.field, one.value)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", stream, one.id, err)
	}
	if code != "" {
		records[0]["code"], records[0]["id"] = code, one.id
	}
	return records, nil
}

// run prints ticks until told to stop, or until none came for so long.
func (c *consumer) run(untilIdle time.Duration) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	out := bufio.NewWriter(os.Stdout)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)

	if err := c.check(c.streams); err != nil {
		return err
	}
	block := blockFor
	if untilIdle < block {
		block = untilIdle + time.Millisecond // 0 would be for ever
	}
	heard := time.Now()
	for len(stop) == 0 {
		news, err := c.next(block)
		if err != nil {
			return err
		}
		if len(news) == 0 {
			if time.Since(heard) >= untilIdle {
				break
			}
			continue
		}
		for _, one := range news {
			for _, entry := range one.entries {
				records, err := c.ticks(one.stream, entry)
				if err != nil {
					return err
				}
				for _, tick := range records {
					if err := lines.Encode(tick); err != nil {
						return err
					}
				}
				c.position.Last[one.stream] = entry.id
			}
		}
		// First the ticks, then the position: see ../README.md.
		if err := out.Flush(); err != nil {
			return err
		}
		if err := c.position.store(); err != nil {
			return err
		}
		heard = time.Now()
	}
	return nil
}

func decodeVectors(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var document struct {
		Vectors []struct{ Schema, Name, Bytes string }
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return err
	}
	lines := json.NewEncoder(os.Stdout)
	for _, vector := range document.Vectors {
		data, err := hex.DecodeString(vector.Bytes)
		if err != nil {
			return err
		}
		records, err := decode(vector.Schema, data)
		if err != nil {
			return fmt.Errorf("%s: %w", vector.Name, err)
		}
		var value any = records
		if vector.Schema != "b1" && vector.Schema != "c1" {
			value = records[0]
		}
		if err := lines.Encode(record{"name": vector.Name, "value": value}); err != nil {
			return err
		}
	}
	return nil
}

type list []string

func (l *list) String() string         { return strings.Join(*l, ",") }
func (l *list) Set(value string) error { *l = append(*l, value); return nil }

func consume() error {
	var markets list
	url := flag.String("url", "redis://127.0.0.1:6379", "where the streams are")
	prefix := flag.String("prefix", "qmt", "prefix of the keys")
	file := flag.String("position", "", "file that remembers where reading stopped")
	idle := flag.Float64("until-idle", math.Inf(1), "end when no tick came for so many seconds")
	vectors := flag.String("decode-vectors", "", "print the golden vectors of this file")
	flag.Var(&markets, "market", "a whole market's feed, such as SH")
	flag.Parse()
	if *vectors != "" {
		return decodeVectors(*vectors)
	}
	if (flag.NArg() > 0) == (len(markets) > 0) {
		return errors.New("name codes, or markets with --market")
	}
	position, err := loadPosition(*file)
	if err != nil {
		return err
	}
	codes, named := map[string]string{}, map[string]bool{}
	for _, market := range markets {
		codes[fmt.Sprintf("{%s:%s}:feed", *prefix, market)], named[market] = "", true
	}
	for _, code := range flag.Args() {
		market := code[strings.LastIndex(code, ".")+1:]
		codes[fmt.Sprintf("{%s:%s}:tick:%s", *prefix, market, code)], named[market] = code, true
	}
	server, err := redis.DialURL(*url)
	if err != nil {
		return err
	}
	defer server.Close()
	reader := &consumer{
		server: server, prefix: *prefix, codes: codes, streams: sorted(codes),
		markets: sorted(named), position: position, toldGone: map[string]string{},
	}
	untilIdle := time.Duration(math.MaxInt64)
	if *idle < untilIdle.Seconds() {
		untilIdle = time.Duration(*idle * float64(time.Second))
	}
	return reader.run(untilIdle)
}

func sorted[V any](names map[string]V) []string {
	keys := make([]string, 0, len(names))
	for name := range names {
		keys = append(keys, name)
	}
	sort.Strings(keys)
	return keys
}

func main() {
	log.SetFlags(0)
	if err := consume(); err != nil {
		log.Fatalf("error: %v", err)
	}
}
