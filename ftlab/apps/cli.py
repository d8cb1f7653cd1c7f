"""The command line: one verb per function of the package, and no logic of its own."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftlab import __version__
from ftlab.apps.arguments import Parser, in_language, lines, open_streams, refuse_unknown_verb
from ftlab.apps.quick_imports import quick_imports
from ftlab.errors import LANGUAGES, LabError, fail, language, say
from ftlab.system_errors import explained

# The exit codes that a shell reports for Ctrl-C, and for a closed output pipe (`ftlab data show NAME | head`).
STOPPED, NO_READER = 130, 141
TRUST = ("--trust-remote-code", "--trust_remote_code")
# Of recipe.memory_needs.GPUS, which takes longer to import; 16 is a T4.
GPU_SIZES = (8, 12, 16, 24, 48, 80, 141)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, see the help; only a bug of ftlab's own shows a traceback."""
    try:
        open_streams()
        return flushed(command(sys.argv[1:] if arguments is None else arguments))
    except LabError as error:
        return told(error)
    except KeyboardInterrupt:
        # Ctrl-C reaches every process of a run.
        if os.environ.get("RANK", "0") == "0":
            print(say("cli_stopped"), file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        silence()
        return NO_READER
    except Exception as error:
        if known := explained(error):
            return told(known)
        traceback.print_exc()
        print("ftlab:", say("cli_bug"), file=sys.stderr)
        return 1


def command(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments begin with."""
    with in_language():
        top = parser()
        if arguments[:1] == ["help"]:
            arguments = [*arguments[1:2], "--help"]
        refuse_unknown_verb(arguments, top.verbs)
        try:
            # Without a verb, print the help.
            options = top.parse_args(arguments or ["--help"])
        except SystemExit as end:
            return int(end.code or 0)
    return options.verb(options) or 0


def flushed(code: int) -> int:
    """Return an exit code after flushing the output, which may find the pipe closed."""
    if sys.stdout:
        sys.stdout.flush()
    return code


def told(error: LabError) -> int:
    """Print an error for the user and return its exit code; in a run of several processes only one prints it."""
    if "RANK" in os.environ:
        from ftlab.runs import launch

        if launch.report(error):
            return error.exit_code
    with contextlib.suppress(BrokenPipeError):
        print(f"ftlab: {error}", file=sys.stderr)
    return error.exit_code


def silence() -> None:
    """Discard the remaining output: Python flushes at exit, and would print an error for the closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())


def parser() -> Parser:
    """Build the parser; each verb's function is its `verb` default."""
    top = Parser(prog="ftlab", description=say("help_course_of"), epilog=say("help_exit_codes"))
    top.add_argument("--version", action="version", version=f"ftlab {__version__}", help=say("argparse_show_version"))
    verbs = top.add_subparsers(required=True, metavar="VERB")
    top.verbs = verbs.choices
    for declare in (
        add_train,
        add_recipe,
        add_eval,
        add_compare,
        add_export,
        add_chat,
        add_serve,
        add_board,
        add_data,
        add_memory,
        add_launch,
        add_machine,
        add_course,
    ):
        declare(verbs)
    return top


def add_train(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab train`."""
    train = add(verbs, "train", train_recipe, say("help_train"))
    train.epilog = say("help_exit_codes")
    train.add_argument("recipe", metavar="RECIPE.yaml")
    take_keys(train, say("help_fresh"))


def add_recipe(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab recipe check`, `explain`, `from` and `show`."""
    recipes = add(verbs, "recipe", None, say("help_recipe"))
    actions = recipes.add_subparsers(required=True, metavar="WHAT")
    check = add(actions, "check", check_recipe, say("help_recipe_check"))
    check.add_argument("recipe", metavar="RECIPE.yaml")
    take_keys(check)
    add(actions, "explain", explain_key, say("help_recipe_explain")).add_argument("key")
    read = add(actions, "from", read_recipe, say("help_recipe_from"))
    read.add_argument("recipe", metavar="FILE", help=say("help_foreign_file"))
    read.add_argument("--as-yaml", metavar="OUT.yaml", help=say("help_as_yaml"))
    take_keys(read)
    show = add(actions, "show", show_recipe, say("help_recipe_show"))
    show.add_argument("recipe", metavar="RECIPE.yaml")
    take_keys(show)
    frameworks = ["trl", "llamafactory", "swift", "axolotl", "verl", "alpaca-lora"]
    show.add_argument("--as", dest="framework", choices=frameworks, default="trl", help=say("help_default"))


def add_eval(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab eval`."""
    score = add(verbs, "eval", score_recipe, say("help_eval"))
    score.add_argument("recipe", metavar="RECIPE.yaml")
    take_keys(score)


def add_compare(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab compare`."""
    compare = add(verbs, "compare", compare_models, say("help_compare"))
    for side in ("a", "b"):
        compare.add_argument(side, metavar=side.upper(), help=say("help_side"))
    compare.add_argument("--dataset", required=True, help=say("help_compare_dataset"))
    compare.add_argument("--dataset-dir", default="data")
    compare.add_argument("--judge", help=say("help_judge"))
    compare.add_argument("--max-samples", type=count, default=100, help=say("help_questions"))
    compare.add_argument("--max-new-tokens", type=count, default=128, help=say("help_longest_answer"))


def add_export(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab export`."""
    export = add(verbs, "export", export_recipe, say("help_export"))
    export.add_argument("recipe", metavar="RECIPE.yaml")
    take_keys(export)


def add_chat(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab chat`."""
    chat = add(verbs, "chat", chat_with, say("help_chat"))
    chat.add_argument("model", help=say("help_model_or_recipe"))
    take_keys(chat)
    chat.add_argument("--adapter", metavar="DIR", help=say("help_adapter"))
    backends = ["auto", "huggingface", "static", "loop", "int8", "int4", "llama.cpp", "llama.cpp-q4"]
    chat.add_argument("--backend", choices=backends, help=say("help_chat_backend"))
    chat.add_argument(*TRUST, action="store_true", help=say("help_trust"))


def add_serve(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab serve`."""
    server = add(verbs, "serve", serve_model, say("help_serve"))
    server.add_argument("model", help=say("help_model_or_recipe"))
    # Not `take_keys`: a --key after the names of --allow-remote would be one of them.
    server.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help=say("help_serve_keys"),
    )
    server.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help=say("help_serve_adapter"),
    )
    served = ["huggingface", "llama.cpp", "llama.cpp-q4"]
    server.add_argument("--backend", choices=served, help=say("help_serve_backend"))
    server.add_argument("--served-model-name", metavar="NAME", help=say("help_served_name"))
    server.add_argument("--port", type=int, help=say("help_serve_port"))
    server.add_argument("--host", help=say("help_serve_host"))
    server.add_argument(
        "--allow-remote",
        nargs="*",
        metavar="NAME",
        help=say("help_serve_remote"),
    )
    server.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help=say("help_allow_origin"),
    )
    server.add_argument(*TRUST, action="store_true", help=say("help_trust"))


def add_board(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab board`."""
    page = add(
        verbs,
        "board",
        open_board,
        say("help_board"),
        "webui",
    )
    page.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help=say("help_board_recipe"))
    page.add_argument("--port", type=int, help=say("help_board_port"))
    page.add_argument("--host", help=say("help_board_host"))
    page.add_argument("--lang", choices=LANGUAGES, help=say("help_lang"))
    page.add_argument("--allow-remote", action="store_true", help=say("help_remote"))


def add_data(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab data check`, `show` and `replay`."""
    data = add(verbs, "data", None, say("help_data"))
    actions = data.add_subparsers(required=True, metavar="WHAT")
    check = add(actions, "check", check_data, say("help_data_check"))
    show = add(actions, "show", show_data, say("help_data_show"))
    replay = add(actions, "replay", write_replay, say("help_data_replay"))
    replay.add_argument("name", metavar="NAME", help=say("help_replay_name"))
    for action in (check, show):
        action.add_argument("name", help=say("help_data_name"))
    for action in (check, show, replay):
        action.add_argument("--dataset-dir", default="data")
        action.add_argument(
            "--model",
            default="smollm2-135m",
            help=say("help_data_model"),
        )
    for action in (check, show):
        action.add_argument("--cutoff-len", type=int, default=1024, help=say("help_cutoff_len"))
    for action in (check, show, replay):
        action.add_argument(*TRUST, action="store_true", help=say("help_trust"))
    check.add_argument("--fix", metavar="OUT.jsonl", help=say("help_fix"))
    replay.add_argument("--prompts", default="general_en", help=say("help_replay_prompts"))
    replay.add_argument("--max-samples", type=count, default=200, help=say("help_replay_samples"))
    replay.add_argument("--max-new-tokens", type=count, default=128, help=say("help_longest_answer"))
    replay.add_argument("--seed", type=int, default=42, help=say("help_replay_seed"))
    show.add_argument("--row", type=int, default=1, help=say("help_row"))


def add_memory(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab memory`."""
    needs = add(verbs, "memory", show_memory, say("help_memory"))
    needs.add_argument("model", help=say("help_memory_model"))
    take_keys(needs)
    needs.add_argument("--devices", type=count, help=say("help_devices"))
    needs.add_argument(
        "--gpu",
        type=int,
        choices=GPU_SIZES,
        metavar="GB",
        help=say("help_gpu", sizes=", ".join(map(str, GPU_SIZES))),
    )


def add_launch(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab launch`."""
    elsewhere = add(verbs, "launch", launch_elsewhere, say("help_launch"))
    elsewhere.add_argument("recipe", metavar="RECIPE.yaml")
    take_keys(elsewhere)
    engines = ["slurm", "ray", "accelerate", "skypilot", "megatron-bridge"]
    elsewhere.add_argument("--on", dest="engine", choices=engines, required=True)
    elsewhere.add_argument("--nodes", type=count, default=1, help=say("help_nodes"))
    elsewhere.add_argument("--gpus", type=count, default=1, help=say("help_gpus"))
    elsewhere.add_argument("--submit", action="store_true", help=say("help_submit"))


def add_machine(verbs: argparse._SubParsersAction) -> None:
    """Declare `ftlab models`, `env` and `version`."""
    add(verbs, "models", list_models, say("help_models"))
    env = add(verbs, "env", show_env, say("help_env"))
    env.add_argument("--autodl", action="store_true", help=say("help_autodl"))
    add(verbs, "version", show_version, say("help_version"))


def add_course(verbs: argparse._SubParsersAction) -> None:
    """Declare the commands of `ftlab course`."""
    course = add(verbs, "course", None, say("help_course"))
    parts = course.add_subparsers(required=True, metavar="WHAT")
    add(parts, "list", list_lessons, say("help_course_list"))
    start = add(parts, "start", start_course, say("help_course_start"))
    start.add_argument(
        "folder",
        nargs="?",
        default="ftlab-course",
        metavar="DIR",
        help=say("help_course_folder"),
    )
    start.add_argument("--lang", choices=LANGUAGES, help=say("help_lang"))
    start.add_argument("--no-open", action="store_true", help=say("help_no_open"))
    run = add(parts, "run", run_lessons, say("help_course_run"))
    run.add_argument("numbers", nargs="*", metavar="NN")
    run.add_argument("--profile", default="smoke", help=say("help_profile"))
    run.add_argument("--seed", type=int, metavar="N", help=say("help_course_seed"))
    export = add(parts, "export", export_lessons, say("help_course_export"))
    export.add_argument("numbers", nargs="*", metavar="NN", help=say("help_thread"))
    export.add_argument("--complete", action="store_true", help=say("help_complete"))
    export.add_argument("--out", default="ftlab-complete.ipynb", metavar="FILE", help=say("help_default"))
    export.add_argument("--lang", choices=LANGUAGES, help=say("help_lang"))
    pack = add(parts, "pack", write_pack, say("help_course_pack"))
    pack.add_argument("numbers", nargs="*", metavar="NN")
    pack.add_argument("--out", default="ftlab-pack", metavar="DIR", help=say("help_default"))
    pack.add_argument("--lang", choices=LANGUAGES, help=say("help_lang"))
    check = add(parts, "check", check_exercises, say("help_course_check"))
    check.add_argument("numbers", nargs="*", metavar="NN")
    check.add_argument("--out", metavar="FILE.html", help=say("help_report_card"))
    build = add(parts, "build", build_lessons, say("help_course_build"))
    build.add_argument("numbers", nargs="*", metavar="NN")
    build.add_argument("--run", action="store_true", help=say("help_course_rerun"))


def add(verbs: argparse._SubParsersAction, name: str, function: object, text: str, *aliases: str) -> Parser:
    """Add one verb with its help text."""
    verb = verbs.add_parser(name, help=text, description=text, aliases=aliases)
    verb.set_defaults(verb=function)
    return verb


def count(text: str) -> int:
    """Return an option's value as an integer of at least 1; otherwise argparse names the option in its error."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def take_keys(verb: Parser, more: str = "") -> None:
    """Let a verb take any key of a recipe, as `key=value` or `--key value`."""
    verb.keys = True
    text = say("help_keys", more=more)
    # Without a default, argparse lists them among the arguments that are missing.
    verb.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def train_recipe(options: argparse.Namespace) -> int:
    """Run a recipe and print its run folder; return STOPPED if it was stopped before the end."""
    from ftlab.recipe import read as recipes
    from ftlab.runs import launch, ray_workers

    switches = [override for override in options.overrides if override.lower().startswith("fresh=")]
    fresh = [switch.lower().removeprefix("fresh=") for switch in switches]
    if wrong := next((value for value in fresh if value not in ("true", "false")), None):
        hint = say("one_of", names="true, false")
        raise fail("recipe_choice", where=f"fresh={wrong}", key="fresh", value=repr(wrong), hint=hint)
    overrides = [override for override in options.overrides if override not in switches]
    launch.enter()
    recipe = recipes.load(options.recipe, overrides)
    if recipe.encodes:
        with quick_imports():
            from ftlab.runs import train
        print(train.encode(recipe))
        return 0
    if ray_workers.asked(recipe):
        return ray_workers.start(recipe, ["train", options.recipe, *options.overrides], command)
    if processes := launch.to_start(recipe):
        return launch.start(processes, ["train", options.recipe, *options.overrides])
    with quick_imports():
        from ftlab.runs import train

    run = train.train(recipe, fresh=fresh[-1:] == ["true"])
    if run.stopped_at is not None:
        return STOPPED
    loss, seconds = f"{run.metrics['train_loss']:.3f}", f"{run.metrics['train_seconds']:.0f}"
    print(say("train_done", where=run.folder, loss=loss, seconds=seconds))
    if launch.is_main():
        # The other processes may end while the first one is still moving its results into place.
        print(train.next_step(recipe, run))
    return 0


def score_recipe(options: argparse.Namespace) -> None:
    """Print the scores of a recipe's model."""
    with quick_imports():
        from ftlab.recipe import read as recipes
        from ftlab.runs import evaluation

    print(evaluation.scores_table(evaluation.score(recipes.load(options.recipe, options.overrides))))


def compare_models(options: argparse.Namespace) -> None:
    """Let a judge, or the user, choose between the answers of two models; print and save the result."""
    with quick_imports():
        from ftlab.runs import compare

    questions = compare.questions(options.dataset, options.dataset_dir, options.max_samples)
    judge = at_keyboard if options.judge is None else compare.judge(options.judge)
    name = compare.name_of(options.a, options.b, options.judge)
    how = {"max_new_tokens": options.max_new_tokens, "fresh": options.judge is not None}
    compared = compare.pile(options.a, options.b, questions, name, **how)
    with contextlib.suppress(EOFError):
        compared.labels.rate(judge)
    print(compare.report(compare.outcome(compared)))
    if saved := compared.labels.preferences():
        print(say("compare_saved", count=len(saved), name=name, place=compared.labels.path.parent))


def at_keyboard(question: str, left: str, right: str) -> int:
    """Print two answers and return the choice that is typed: 0 left, 1 right, -1 neither.

    Raises:
        EOFError: an empty line, or the end of the input.
    """
    print(f"\n{question}\n\n  1: {left}\n\n  2: {right}\n")
    for line in lines(say("compare_keys")):
        if line.strip() in ("0", "1", "2"):
            return int(line) - 1
    raise EOFError


def export_recipe(options: argparse.Namespace) -> None:
    """Export a recipe's model and print the comparison with the model in memory."""
    with quick_imports():
        from ftlab.recipe import read as recipes
        from ftlab.runs import export

    recipe = recipes.load(options.recipe, options.overrides)
    done = export.export(recipe)
    merged, reloaded = f"{done.merge_difference:.1e}", f"{done.total_difference:.1e}"
    share = f"{done.greedy_equal_share:.0%}"
    print(say("export_done", where=done.folder, merged=merged, reloaded=reloaded, share=share))
    if done.gguf and done.gguf_difference is None:
        print(say("export_gguf_unread", where=done.gguf))
    elif done.gguf:
        difference, divergence = f"{done.gguf_difference:.1e}", f"{done.gguf_divergence:.4f}"
        print(say("export_gguf_read", where=done.gguf, difference=difference, divergence=divergence))
    if done.gptq_divergence is not None:
        divergence = f"{done.gptq_divergence:.4f}"
        print(say("export_gptq", where=done.folder, bits=recipe.export_quantization_bit, divergence=divergence))


def check_recipe(options: argparse.Namespace) -> None:
    """Print how the keys of a recipe were resolved."""
    with quick_imports():
        from ftlab.recipe import read as recipes
        from ftlab.runs import train

    for note in recipes.check(options.recipe, options.overrides):
        print(note)
    train.check(recipes.read(options.recipe, options.overrides)[0])
    print(say("check_valid", where=options.recipe))


def show_recipe(options: argparse.Namespace) -> None:
    """Print a recipe as a script, a file or a command of another framework."""
    from ftlab.recipe import read as recipes
    from ftlab.recipe import to_frameworks, to_script, to_verl
    from ftlab.runs import folder

    run, notes = recipes.read(options.recipe, options.overrides)
    for note in notes:
        print(note, file=sys.stderr)
    run = folder.spelled_out(run)
    scripts = {"trl": to_script.script, "verl": to_verl.script}
    text = scripts.get(options.framework, lambda run: to_frameworks.show(run, options.framework))
    print(text(run), end="")


def read_recipe(options: argparse.Namespace) -> None:
    """Print or write the recipe for another framework's file; notes go to stderr."""
    from ftlab.recipe import read as recipes
    from ftlab.recipe import strict_yaml

    run, notes = recipes.read(options.recipe, options.overrides)
    for note in notes:
        print(note, file=sys.stderr)
    if not options.as_yaml:
        print(strict_yaml.dumps(recipes.plain(run)), end="")
        return
    path = Path(options.as_yaml)
    if path.exists():
        raise fail("recipe_exists", where=str(path))
    recipes.write(run, path)
    print(path)


def explain_key(options: argparse.Namespace) -> None:
    """Print what a key means."""
    from ftlab import device
    from ftlab.recipe import machine_defaults
    from ftlab.recipe.explain import explain

    print(explain(options.key))
    if line := machine_defaults.here(options.key, device.describe()):
        print(line)


def chat_with(options: argparse.Namespace) -> None:
    """Answer line after line until the input ends."""
    with quick_imports():
        from ftlab.apps import terminal_chat

    terminal_chat.talk(
        terminal_chat.opened(
            options.model, options.adapter, options.backend, options.overrides, options.trust_remote_code
        )
    )


def serve_model(options: argparse.Namespace) -> None:
    """Serve a model until interrupted."""
    from ftlab import packages

    for name in ("fastapi", "uvicorn", "prometheus_client"):
        packages.require(name, "ftlab serve")
    with quick_imports():
        from ftlab.apps.serve import run

    run.serve(
        options.model,
        options.adapter,
        options.host,
        options.port,
        options.allow_remote,
        options.trust_remote_code,
        options.served_model_name,
        options.allow_origin,
        options.overrides,
        options.backend,
    )


def open_board(options: argparse.Namespace) -> None:
    """Serve the page until interrupted."""
    from ftlab.apps.board import voila_server
    from ftlab.apps.ports import port_of

    port = port_of("GRADIO_SERVER_PORT", 8866) if options.port is None else options.port
    named = os.environ.get("GRADIO_SERVER_NAME")
    if named and not options.host and not options.allow_remote:
        voila_server.require_loopback(named, "GRADIO_SERVER_NAME")
    host = options.host or named or "127.0.0.1"
    voila_server.serve(options.recipe, host, port, options.lang, options.allow_remote)


def tokenizer_for(options: argparse.Namespace) -> Any:
    """Return the tokenizer of the model that `--model` names."""
    from ftlab import models

    trusted = options.trust_remote_code
    return models.load_tokenizer(models.fetch(options.model, trusted), trusted)


def check_data(options: argparse.Namespace) -> int:
    """Print the report on a data set; 1 if it has problems."""
    from ftlab.data import check

    tokenizer = tokenizer_for(options)
    report = check.check(
        options.name,
        options.dataset_dir,
        cutoff_len=options.cutoff_len,
        tokenizer=tokenizer,
        fix_to=Path(options.fix) if options.fix else None,
    )
    print(report)
    return int(bool(report.problems))


def show_data(options: argparse.Namespace) -> None:
    """Print an example token by token, then a summary of the data set."""
    from ftlab import tokens
    from ftlab.data import registry
    from ftlab.data.encoding import Encoding, shown

    tokenizer = tokenizer_for(options)
    rows = registry.rows_of(options.name, options.dataset_dir)
    if not 1 <= options.row <= len(rows):
        raise fail("data_no_row", where=options.name, row=options.row, total=len(rows))
    how = Encoding(cutoff_len=options.cutoff_len)
    for example in shown(tokenizer, rows[options.row - 1], how):
        print(tokens.to_ansi(tokens.tokens(tokenizer, **example)))
    print(tokens.summary(tokenizer, [example for row in rows for example in shown(tokenizer, row, how)]))


def write_replay(options: argparse.Namespace) -> None:
    """Write a model's own answers as a data set and print what was kept."""
    with quick_imports():
        from ftlab.runs import replay

    sizes = {"max_samples": options.max_samples, "max_new_tokens": options.max_new_tokens, "seed": options.seed}
    trusted = options.trust_remote_code
    print(
        replay.write(
            options.name, options.prompts, options.dataset_dir, model=options.model, trust_remote_code=trusted, **sizes
        )
    )


def show_memory(options: argparse.Namespace) -> None:
    """Print the memory that a recipe, or a model with default keys, needs on this machine or a GPU."""
    from ftlab import device
    from ftlab.recipe import memory_devices, memory_needs
    from ftlab.recipe import read as recipes

    is_file = options.model.endswith((".yaml", ".yml"))
    run = recipes.load(options.model if is_file else {"model_name_or_path": options.model}, options.overrides)
    machine = memory_needs.gpu_of(options.gpu) if options.gpu else device.describe()
    sizes = memory_needs.sizes(run.model_name_or_path, **run.source)
    active = say("memory_active", active=f"{sizes.active_parameters / 1e9:.2f}") if sizes.experts > 1 else ""
    parameters = f"{sizes.parameters / 1e9:.2f}"
    print(say("memory_model", name=run.model_name_or_path, parameters=parameters, active=active, machine=machine))
    print(memory_needs.report(run, machine))
    devices = options.devices or run.nproc_per_node or 1
    if devices > 1:
        print(memory_devices.report(run, machine, devices))


def launch_elsewhere(options: argparse.Namespace) -> int:
    """Print what another launcher needs to run a recipe; with --submit start it, and return its exit code."""
    from ftlab.recipe import read as recipes
    from ftlab.runs import clusters

    # Recipes that several processes cannot train are refused already here.
    recipe = recipes.load(options.recipe, [*options.overrides, f"nproc_per_node={options.nodes * options.gpus}"])
    start = clusters.Start(recipe, options.recipe, options.overrides, options.nodes, options.gpus)
    if options.submit:
        return clusters.submit(options.engine, start)
    print(clusters.text(options.engine, start), end="")
    return 0


def list_models(options: argparse.Namespace) -> None:
    """Print the catalogue with what each model needs on this machine."""
    from ftlab import catalogue, device
    from ftlab.recipe import memory_needs
    from ftlab.recipe import read as recipes

    machine = device.describe()
    print(machine)
    print(say("models_title"))
    print(f"{'name':<14} {'parameters':>10} {'run':>7} {'QLoRA':>7} {'LoRA':>7} {'full':>7}  licence, hub id")
    for model in catalogue.MODELS:
        keys: dict[str, Any] = {"model_name_or_path": model.name, "per_device_train_batch_size": 1, "cutoff_len": 512}
        rows = [
            memory_needs.needs(recipes.load(keys | memory_needs.METHODS[name]), machine).peak
            for name in ("qlora", "lora", "full")
        ]
        cells = " ".join(f"{fits(need, machine.memory_bytes):>7}" for need in (2 * model.parameters, *rows))
        print(f"{model.name:<14} {model.parameters / 1e9:>9.2f}B {cells}  {model.licence}, {model.hub_id}")
    print(say("models_star"))


def fits(need_bytes: int, memory_bytes: int) -> str:
    """Return bytes in GiB, with a star if they exceed the memory."""
    return f"{need_bytes / 2**30:.1f}{'*' if need_bytes > memory_bytes else ' '}"


def show_env(options: argparse.Namespace) -> int:
    """Print machine, versions and the FTLAB_ variables, none of which is a secret; 1 if AutoDL needs a setting."""
    import platform

    from ftlab import device
    from ftlab.apps import lesson_setup, rented

    print(f"ftlab {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(device.describe())
    for name, version in device.versions().items():
        print(f"{name} {version}")
    for name in sorted(name for name in os.environ if name.startswith("FTLAB_")):
        print(f"{name}={os.environ[name]}")
    if not options.autodl and not lesson_setup.DATA_DISK.is_dir():
        return 0
    findings = list(rented.preflight())
    print("AutoDL:", *findings, say("rented_after"), sep="\n")
    return int(options.autodl and not all(finding.fine for finding in findings))


def show_version(options: argparse.Namespace) -> None:
    """Print the version."""
    print(f"ftlab {__version__}")


def list_lessons(options: argparse.Namespace) -> None:
    """Print number and title of every lesson, in the user's language."""
    from ftlab.apps import lesson_files

    for lesson in lesson_files.lessons():
        print(lesson_files.title(lesson, language()))


def start_course(options: argparse.Namespace) -> int:
    """Write this version's course to a folder, report which files were kept, and open it."""
    from ftlab.apps import course_start

    folder = Path(options.folder)
    files, changes = course_start.lay_out(folder)
    for name, beside in changes.items():
        print(say("course_kept", name=name, beside=beside))
    print(say("course_laid_out", count=len(files), where=folder.resolve()))
    return 0 if options.no_open else course_start.open_lab(folder, options.lang or language())


def export_lessons(options: argparse.Namespace) -> None:
    """Write lessons as one notebook."""
    from ftlab.apps import complete

    if options.complete and options.numbers:
        raise fail("course_export_both", where=" ".join(options.numbers))
    templates = complete.export(Path(options.out), options.numbers, options.lang or language())
    print(say("course_exported", notebook=options.out, templates=templates))


def write_pack(options: argparse.Namespace) -> None:
    """Write solutions and slides of lessons."""
    from ftlab.apps import teacher_pack

    print(*teacher_pack.write(Path(options.out), options.numbers, options.lang or language()), sep="\n")


def run_lessons(options: argparse.Namespace) -> int:
    """Execute lessons; 1 if one failed."""
    from ftlab.apps import course

    return int(any(result.status != "ok" for result in course.run(options.numbers, options.profile, options.seed)))


def check_exercises(options: argparse.Namespace) -> int:
    """Print a verdict per exercise, or the report card of all lessons; 1 while an exercise is open."""
    from ftlab.apps import course, lesson_files, report_card

    if options.out:
        report_card.refuse_existing(Path(options.out))
    results = [(lesson, course.check_answers(lesson)) for lesson in lesson_files.lessons(options.numbers)]
    if options.numbers:
        for lesson, verdicts in results:
            for number, verdict in enumerate(verdicts, 1):
                print(say("course_verdict", lesson=lesson.number, number=number, verdict=verdict))
    else:
        print(report_card.as_text(results))
    if options.out:
        report_card.write_page(results, Path(options.out))
    return int(not all(verdict.passed for _, verdicts in results for verdict in verdicts))


def build_lessons(options: argparse.Namespace) -> None:
    """Write the notebooks of both languages."""
    from ftlab.apps import lesson_files, notebooks

    for lesson in lesson_files.lessons(options.numbers):
        notebooks.build(lesson, execute=options.run)
        print(f"built {lesson.name}")
