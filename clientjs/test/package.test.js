import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const root = new URL('../', import.meta.url)
const read = (/** @type {string} */ path) => readFileSync(new URL(path, root), 'utf8')
const sources = readdirSync(new URL('src/', root))
  .filter((name) => name.endsWith('.js'))
  .map((name) => ({ name, text: read(`src/${name}`) }))

/**
 * What one page downloads, in bytes, minified and gzipped. index: all but the store, which is loaded once somebody asks
 * for `persist`; core: no tabs, no queue of writes, no store, no memory of networks.
 */
const LIMITS = { index: 12_100, core: 9_300, store: 1_350 }

for (const [entry, limit] of Object.entries(LIMITS)) {
  test(`a page downloads no more than ${limit / 1000} kB for ${entry}.js`, async (t) => {
    const { metafile, outputFiles, warnings } = await build({
      entryPoints: [fileURLToPath(new URL(`src/${entry}.js`, root))],
      outdir: 'dist',
      bundle: true,
      splitting: true,
      metafile: true,
      minify: true,
      format: 'esm',
      target: 'es2022',
      write: false,
    })
    const [{ contents }] = outputFiles
    const size = gzipSync(contents, { level: 9 }).length
    t.diagnostic(`${contents.length} bytes minified, ${size} gzipped`)
    assert.ok(size <= limit, `${size} bytes`)
    assert.deepEqual(warnings, [])
    // What comes on demand is a file of its own, and shares none with the rest.
    const [{ imports }] = Object.values(metafile.outputs).filter(({ entryPoint }) =>
      entryPoint?.endsWith(`/${entry}.js`),
    )
    assert.ok(imports.every(({ kind }) => kind === 'dynamic-import'))
  })
}

test('a page loads the sources as they are, without a build step', () => {
  for (const { name, text } of sources) {
    assert.match(name, /^[a-z]+\.js$/)
    for (const [, path] of text.matchAll(/^(?:import|export) [^;]*?from '([^']+)'/gm)) {
      assert.ok(/^\.\/[a-z]+\.js$/.test(path), `${name} imports ${path}`)
      assert.ok(
        sources.some((source) => `./${source.name}` === path),
        `${name} imports ${path}`,
      )
    }
    assert.doesNotMatch(text, /\bimport\(['"](?!\.)|\brequire\(|\bprocess\b|\bBuffer\b/, name)
  }
})

test('whoever installs the package gets it from the registry, and nothing with it', () => {
  const { dependencies, exports, files, sideEffects } = JSON.parse(read('package.json'))
  assert.equal(dependencies, undefined)
  assert.equal(sideEffects, false)
  assert.ok(files.includes('src') && files.includes('types'))
  assert.ok(read(exports['.'].default))
  const lock = JSON.parse(read('package-lock.json'))
  for (const [name, { resolved }] of Object.entries(lock.packages)) {
    assert.equal(resolved, undefined, name)
  }
})

for (const tool of [
  ['publint', '--strict'],
  ['attw', '--pack', '.', '--profile', 'esm-only', '--format', 'ascii'],
]) {
  test(`the package and its types are found by whoever imports ES modules, says ${tool[0]}`, {
    timeout: 60_000,
  }, () => {
    spawnSync('npm', ['run', 'build'], { cwd: root })
    const { status, stdout, stderr } = spawnSync('npx', ['--no-install', ...tool], { cwd: root, encoding: 'utf8' })
    assert.equal(status, 0, `${stdout}\n${stderr}`)
  })
}
