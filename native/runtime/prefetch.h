// Tells a residency that streams which experts a step will use, as soon as routing has chosen them; and which ones the
// next layer will probably choose: those that its own routing chooses for the rows that this layer's experts read.
#pragma once

#include <memory>
#include <vector>

#include "runtime/op.h"
#include "runtime/program.h"
#include "runtime/routing_slice.h"
#include "runtime/step.h"

namespace deepmnn {

class Prefetch {
 public:
  // program: gets buffers for what is guessed. ops: of its instructions.
  Prefetch(Program& program, const std::vector<std::unique_ptr<Op>>& ops, RopeTables& ropes);

  // Instruction i has run.
  void after(size_t i, Step& step) {
    for (const Choice& choice : choices_[i]) announce(choice, step);
  }

 private:
  // What the next layer will choose: its routing on this layer's rows. The one after that is guessed right too seldom
  // (docs/log.md).
  struct Guess {
    RoutedWeights weights;                 // without experts: there is no such layer
    std::vector<std::unique_ptr<Op>> ops;  // none where its routing needs more than those
    Buffer indices;
  };
  // What an instruction has just chosen, and how to guess what comes next.
  struct Choice {
    Buffer indices;
    RoutedWeights weights;
    Guess next;
  };

  void announce(const Choice& choice, Step& step);
  void gather(const RoutedWeights& weights, const int32_t* indices, int64_t n);
  Guess make_guess(Program& program, const RoutingSlice& here, const RoutingSlice& next, RopeTables& ropes);

  std::vector<std::vector<Choice>> choices_;                // [instructions]
  std::vector<std::unique_ptr<Instruction>> instructions_;  // that were made for guesses
  std::vector<uint32_t> ids_;                               // of the weights of those that were gathered
  std::vector<int32_t> uses_;                               // of each
  std::vector<int32_t> counts_;                             // of each expert
};

}  // namespace deepmnn
