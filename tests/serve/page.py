"""The page in a browser: python3 page.py ADDRESS PICTURE FOLDER.

Drives Chromium through its debugging port as a person would: chooses a picture, types, presses keys. Writes a screenshot of each
state into FOLDER, and `result.png`, the picture that the page offers to save.
"""

import base64
import json
import subprocess
import sys
import tempfile
import time
import urllib.request

import websocket


class Browser:
    def __init__(self, profile):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        flags += ["--remote-allow-origins=*", "--no-first-run", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(["chromium", *flags], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "DevTools listening on ws://" in line:
                port = line.split("ws://")[1].split("/")[0]
                break
        pages = json.load(urllib.request.urlopen(f"http://{port}/json"))
        target = next(page for page in pages if page["type"] == "page")
        self.socket, self.number, self.faults = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60), 0, []
        self.own = "about:"
        for domain in ["Page", "Runtime", "DOM", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                entry = message["params"].get("entry", {})
                # The page's own words about an answer of status 400 are no fault of the page.
                if entry.get("source") != "network":
                    self.faults.append(message["params"])
            if message.get("method") == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                assert url.startswith((self.own, "data:", "blob:", "about:")), f"the page asks {url}"
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def run(self, script):
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.05)

    def look(self, width, height, dark=False, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def shot(self, path):
        time.sleep(0.3)
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        open(path, "wb").write(base64.b64decode(data))

    def choose(self, picture):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[picture])
        self.until("!document.getElementById('view').hidden && document.getElementById('before').complete")

    def key(self, key, code, number, modifiers=0):
        for kind in ["rawKeyDown", "keyUp"]:
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number, modifiers=modifiers)

    def write(self, text):
        self.call("Input.insertText", text=text)


def main(address, picture, folder):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            drive(browser, f"http://{address}/", picture, folder)
        finally:
            browser.process.terminate()
            browser.process.wait()
    assert not browser.faults, browser.faults
    print("the page is served")


def drive(browser, url, picture, folder):
    browser.own = url
    shot = lambda name: browser.shot(f"{folder}/{name}.png")
    text = lambda name: browser.run(f"document.getElementById('{name}').textContent")
    browser.look(1200, 800)
    browser.call("Page.navigate", url=url)
    browser.until("document.getElementById('model')?.textContent.includes('step1x-edit-demo')")
    shot("empty")

    # Without a picture and without words nothing is sent.
    browser.run("document.getElementById('prompt').focus()")
    browser.key("Enter", "Enter", 13, modifiers=2)
    browser.until("!document.getElementById('error').hidden")
    assert "picture" in text("error"), text("error")
    browser.choose(picture)
    shot("chosen")
    assert browser.run("document.activeElement.id") == "prompt"
    browser.write("make the circle blue")
    set_field = lambda name, value: browser.run(f"document.getElementById('{name}').value = '{value}'")
    set_field("seed", "42")
    set_field("steps", "60")

    # A running edit can be stopped with a key.
    browser.key("Enter", "Enter", 13, modifiers=2)
    browser.until("document.getElementById('status').textContent.startsWith('Step ')")
    assert browser.run("document.activeElement.id") == "stop"
    shot("running")
    browser.key("Escape", "Escape", 27)
    browser.until("document.getElementById('status').textContent === 'Stopped.'")

    # An edit, by keys alone.
    set_field("steps", "4")
    browser.run("document.getElementById('prompt').focus()")
    browser.key("Enter", "Enter", 13, modifiers=2)
    browser.until("document.getElementById('status').textContent === 'Done.'")
    shot("done")
    script = """result.blob.arrayBuffer()
        .then((bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))))"""
    open(f"{folder}/result.png", "wb").write(base64.b64decode(browser.run(script)))
    assert text("caption").startswith("Seed 42"), text("caption")

    # The slider answers to keys.
    browser.run("document.getElementById('slider').focus()")
    for _ in range(10):
        browser.key("ArrowRight", "ArrowRight", 39)
    assert browser.run("document.getElementById('frame').style.getPropertyValue('--at')") == "60%"

    # The result can be edited further, and what was made can be seen again.
    browser.run("document.getElementById('further').click()")
    set_field("prompt", "make the background green")
    browser.run("document.getElementById('start').click()")
    browser.until("document.querySelectorAll('#history li').length === 2 && document.getElementById('status').textContent === 'Done.'")
    browser.run("document.querySelector('#history li:last-child button').click()")
    assert browser.run("document.getElementById('prompt').value") == "make the circle blue"
    shot("history")

    # What the server says of a field leads to the field.
    set_field("steps", "many")
    browser.run("document.getElementById('start').click()")
    browser.until("!document.getElementById('error').hidden")
    assert "many" in text("error") and browser.run("document.activeElement.id") == "steps", text("error")
    shot("error")
    set_field("steps", "4")

    browser.look(1200, 800, dark=True)
    browser.run("document.querySelector('#history li:last-child button').click(); document.getElementById('error').hidden = true")
    shot("dark")
    browser.look(390, 844, phone=True)
    shot("phone")
    browser.look(390, 844, dark=True, phone=True)
    browser.call("Page.reload")
    browser.until("document.getElementById('model')?.textContent.includes('step1x-edit-demo')")
    shot("phone-empty")
    wide = browser.run("document.documentElement.scrollWidth")
    assert wide <= 390, f"the page is {wide} pixels wide on a phone"


if __name__ == "__main__":
    main(*sys.argv[1:])
