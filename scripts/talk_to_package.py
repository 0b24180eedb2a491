"""Hold a short conversation with a package and print answers and speed.

python scripts/talk_to_package.py PACKAGE PROMPT [PROMPT …]
"""

import sys

from qwen_edge.runtime import SamplingParams, load


def main() -> None:
    """Ask every prompt in one session."""
    package, *prompts = sys.argv[1:]
    greedy = SamplingParams(temperature=0)
    with load(package) as model, model.session(thinking=False) as chat:
        for prompt in prompts:
            print(f"> {prompt}")
            for event in chat.stream(prompt, sampling=greedy, max_new_tokens=200):
                print(event.text, end="", flush=True)
            assert event.timings is not None
            speed = event.timings.decode_tokens_per_s
            print(
                f"\n  [{event.timings.decode_tokens} tokens"
                + (f", {speed:,.0f} tokens/s]" if speed else "]")
            )


if __name__ == "__main__":
    main()
