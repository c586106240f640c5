"""Makes ``docs/images/page.png``: a search on the page of ``dmpt serve``, among drawn people, in Chromium."""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from dmpt.base.files import write_atomically

WORLD = ["--ids", "33", "--test-ids", "32", "--images", "6", "--cameras", "6", "--seed", "12"]
QUERY = "000002_cam1_0_00.jpg"
SIZE, SCALE = {"width": 1280, "height": 896}, 1.5


def main(out: Path) -> None:
    """Draw, embed, serve, ask, and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        world, gallery = Path(folder, "world"), Path(folder, "g.lance")
        dmpt = [sys.executable, "-m", "dmpt"]
        subprocess.run([*dmpt, "synth", world, *WORLD], check=True)
        listed = ["--data.layout", "rgbnt201", "--split", "gallery"]
        subprocess.run([*dmpt, "embed", world, *listed, "--model", "package:tiny", "--out", gallery], check=True)
        serve = [*dmpt, "serve", "package:tiny", "--gallery", str(gallery), "--port", "0"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as service:
            assert service.stdout is not None
            try:
                pixels = picture(service.stdout.readline().split()[0])
            finally:
                service.terminate()
    image = Image.open(io.BytesIO(pixels)).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    write_atomically(out, lambda path: image.save(path, "PNG", optimize=True))


def picture(base: str) -> bytes:
    """Of the page with what was found for ``QUERY``; a PNG."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, device_scale_factor=SCALE, reduced_motion="reduce")
        page.goto(f"{base}#key=test/RGB/{QUERY}")
        page.wait_for_selector("#found .pane.there")
        page.wait_for_load_state("networkidle")
        return page.screenshot()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
