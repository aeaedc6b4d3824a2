"""splore push: a finished run, or a model file, to the Hugging Face Hub."""

from splore.commands.parser import Misuse, Parser


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("push", push.__doc__ or "")
    parser.add_argument("source", metavar="RUN_OR_FILE", help="the folder of a finished run, or a model file")
    parser.add_argument("name", metavar="USER/NAME", help="the repository; it is made where it isn't there")
    parser.add_argument("--private", action="store_true", help="close a new repository to others")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to write to; main by default")
    values = parser.parse_args(words)
    if values.name.count("/") != 1:
        raise Misuse(f"expected the repository as USER/NAME, found {values.name}")
    return push(values.source, values.name, values.private, values.revision)


def push(source: str, name: str, private: bool = False, revision: str | None = None) -> int:
    """Puts a model file on the Hub, with a model card made from the run's figures; log in by: hf auth login."""
    from splore.deploy.hub import push_to_hub

    print(f"{push_to_hub(source, name, private, revision)}: read it by splore.load({name!r})")
    return 0
