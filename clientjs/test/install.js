/**
 * Puts something where the platform has it, as long as the test lasts.
 * @param {import('node:test').TestContext} t
 * @param {Record<string, unknown>} globals
 */
export function install(t, globals) {
  for (const [name, value] of Object.entries(globals)) {
    const before = Object.getOwnPropertyDescriptor(globalThis, name)
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
    t.after(() => {
      if (before) Object.defineProperty(globalThis, name, before)
      else Reflect.deleteProperty(globalThis, name)
    })
  }
}
