import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

export default defineConfig({
  plugins: [react()],
  // TanStack DB's queries are most of it.
  build: { chunkSizeWarningLimit: 600 },
})
