// Fails in the way that its first argument names. VALUE, NAME and PORT differ from run to run.
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"
)

type quotaError struct {
	who  string
	used int
}

func (e *quotaError) Error() string { return fmt.Sprintf("%s used %d bytes", strconv.Quote(e.who), e.used) }

type node struct{ next *node }

func (n *node) walk() int { return n.next.walk2() }

func (n *node) walk2() int { return len(fmt.Sprint(*n)) }

func pick(list []int, i int) int { return list[i] }

func pickAgain(list []int, i int) int { return list[i] }

func main() {
	value, _ := strconv.Atoi(os.Getenv("VALUE"))
	name := os.Getenv("NAME")
	switch os.Args[1] {
	case "index":
		pick(make([]int, value%5), value+5)
	case "index_elsewhere":
		pickAgain(make([]int, value%5), value+5)
	case "nil":
		(&node{}).walk()
	case "nil_map":
		var m map[string]int
		m[name] = value
	case "divide":
		fmt.Println(value / (value - value))
	case "custom":
		panic(&quotaError{name, value})
	case "text":
		panic(fmt.Sprintf("shard %d of %q is gone", value, name))
	case "wrapped":
		panic(fmt.Errorf("job %d: %w", value, errors.New("connection reset")))
	case "deadlock":
		var lock sync.Mutex
		lock.Lock()
		lock.Lock()
	case "concurrent":
		m := map[int]int{}
		for i := 0; i < 4; i++ {
			go func(i int) {
				for j := 0; ; j++ {
					m[j] = i
				}
			}(i)
		}
		select {}
	case "goroutine":
		var wait sync.WaitGroup
		wait.Add(1)
		go func() {
			defer wait.Done()
			pick(nil, value)
		}()
		wait.Wait()
	case "repanic":
		defer func() {
			if r := recover(); r != nil {
				panic(fmt.Sprintf("cleanup after: %v", r))
			}
		}()
		panic("first " + strconv.Itoa(value))
	case "convert":
		var any interface{} = name
		fmt.Println(any.(int))
	case "closed":
		c := make(chan int)
		close(c)
		close(c)
	case "logged":
		log.Fatalf("ERROR cannot bind port %s for %q", os.Getenv("PORT"), name)
	}
}
